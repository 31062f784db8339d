//! Ways out of a shared folder that the guest tries while the host works in it.

use xtask::run::shell_word;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI};

/// What the guest does. The host's program begins when `ready` is there, and moves the folder `leaving` out.
const IN_THE_GUEST: &str = r#"
is() { [ "$1" = "$2" ] || { echo "is $1 and should be $2: $3"; exit 23; }; }
fails() { "$@" 2>/dev/null && { echo "did not fail: $*"; exit 22; }; }
modprobe virtiofs && mkdir /tmp/a && mount -t virtiofs files /tmp/a && cd /tmp/a || exit 20
is "$(cat mounted/file)" inner 'a file system in the folder'
is "$(ls mounted/..)" "$(ls .)" 'what is above it'
fails cat device
fails sh -c 'echo x >device'
fails mknod own c 1 3
fails ln sub/file /tmp/own
cd leaving
echo >/tmp/a/ready
until [ -e /tmp/a/moved ]; do sleep 0.05; done
sleep 1.1
fails cat ../secret
fails cat ../outside/secret
cd /tmp/a
# The guest itself has a hand in it.
(while [ ! -e /tmp/stop ]; do mv -T sub mine; ln -sT /tmp/outside sub; rm sub; mv -T mine sub; done) 2>/dev/null &
read=0
for number in $(seq 100); do
    [ $number -gt 20 ] && [ $read -gt 0 ] && break
    text=$(cat sub/file 2>/dev/null) && { is "$text" public 'a file behind a name that changes'; read=$((read + 1)); }
    echo guest >sub/made; chmod 777 sub/file; ln sub/file sub/more; rm -f sub/made sub/more
done 2>/dev/null
echo >/tmp/stop
wait
[ $read -gt 0 ] || { echo 'nothing was read'; exit 24; }
echo done
"#;

/// Folder and link change places on both sides; a folder is moved out, a file system lies in the folder, and a device.
pub(super) fn none(host: &mut Host) -> Checked {
    let script = format!(
        r#"
        mkdir -p /tmp/files/sub /tmp/files/leaving /tmp/files/mounted /tmp/outside
        echo public >/tmp/files/sub/file
        echo secret >/tmp/outside/secret; cp /tmp/outside/secret /tmp/outside/file; chmod 640 /tmp/outside/*
        mknod /tmp/files/device c 1 3
        mount -t tmpfs none /tmp/files/mounted; echo inner >/tmp/files/mounted/file
        ./covisor {MINI} --share /tmp/files,tag=files --exec {} </dev/null >/tmp/guest 2>/tmp/errors & pid=$!
        until [ -e /tmp/files/ready ]; do
            kill -0 $pid || {{ cat /tmp/guest; cat /tmp/errors >&2; umount /tmp/files/mounted; exit 30; }}
            sleep 0.05
        done
        mv /tmp/files/leaving /tmp/outside/moved; echo >/tmp/files/moved
        cd /tmp/files
        # None of these follows a link of the guest's, as others of the host's programs would.
        (while kill -0 $pid; do mv -T sub aside; ln -sT /tmp/outside sub; rm sub; mv -T aside sub; done) 2>/dev/null
        wait $pid; status=$?
        cat /tmp/guest; cat /tmp/errors >&2
        umount /tmp/files/mounted
        [ $status = 0 ] || exit $status
        cd /tmp/outside; ls -1; stat -c '%n %a' file secret; cat file secret
        "#,
        shell_word(IN_THE_GUEST)
    );
    let outcome = host.sh(&script)?;
    let expected = "done\nfile\nmoved\nsecret\nfile 640\nsecret 640\nsecret\nsecret\n";
    ensure!(outcome.status == 0 && outcome.stdout_text() == expected, "{}", told(&outcome));
    Ok(())
}
