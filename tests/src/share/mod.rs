//! Folders of the host's in a guest.

mod conformance;
mod escapes;

use xtask::run::shell_word;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI, on_host};

/// The scenarios about shared folders.
pub(crate) const SCENARIOS: &[Scenario] =
    &[Scenario::new("share/both-see-what-the-other-does", |env, kind| on_host(env, kind, both_see))];

/// Those that are about the folder and not about the engine: one has them.
pub(crate) const ON_ONE_ENGINE: &[Scenario] = &[
    Scenario::new("share/no-way-out", |env, kind| on_host(env, kind, escapes::none)),
    Scenario::new("share/fsx", |env, kind| conformance::fsx(env, kind, 500)),
    Scenario::new("share/fsx-long", |env, kind| conformance::fsx(env, kind, 20_000)).on_demand(),
    Scenario::new("share/pjdfstest", |env, kind| conformance::pjdfstest(env, kind, "rename:: unlink:: link::", 40)),
    Scenario::new("share/pjdfstest-whole", |env, kind| conformance::pjdfstest(env, kind, "", 290)).on_demand(),
];

/// What the guest does, on which the host comes in twice.
const IN_THE_GUEST: &str = r#"
must() { "$@" || { echo "failed: $*"; exit 21; }; }
fails() { "$@" 2>/dev/null && { echo "did not fail: $*"; exit 22; }; }
is() { [ "$1" = "$2" ] || { echo "is $1 and should be $2: $3"; exit 23; }; }
modprobe virtiofs || exit 20
mkdir /tmp/a /tmp/b
must mount -t virtiofs files /tmp/a
must mount -t virtiofs share1 /tmp/b
fails mount -t virtiofs none /tmp
cd /tmp/a
is "$(cat from-host)" host 'a file of the host'
# More than a message holds.
must dd if=/dev/urandom of=large bs=1M count=3 2>/dev/null
md5sum large | cut -d' ' -f1 >large.md5
must mkdir -p folder/below
echo guest >folder/below/file
must mv folder/below/file folder/moved
must ln -s moved folder/link
must ln folder/moved folder/hard
must chmod 750 folder
must chmod 4711 large.md5
must chown 1000:100 folder/moved
must touch -d '2001-02-03 04:05:06' folder/moved
is "$(stat -c %a:%u:%g:%h:%Y folder/moved)" "644:1000:100:2:981173106" 'what is known of a file'
is "$(readlink folder/link)" moved 'a link'
is "$(cat folder/link)" guest 'what a link leads to'
must mkfifo pipe
(echo through >pipe &)
is "$(cat pipe)" through 'a pipe between programs of the guest'
fails mknod device c 1 3
for number in $(seq 300); do echo $number >many$number; done
is "$(ls | grep -c many)" 300 'files in a folder'
rm many*
exec 5>gone; rm gone; echo still >&5; exec 5>&-
# Links that lead out of the folder lead about in the guest.
is "$(cat to-hosts-name)" mini 'where a link of the host leads'
fails cat to-hosts-secret
ln -s /covisor/secret guests-own
fails cat guests-own
fails ls /tmp/a/../covisor
cd /tmp/b
is "$(cat file)" read-only 'a file that is only read'
is "$(stat -c %u:%g file)" 1234:1234 'whose it is shown to be'
fails touch new
fails rm file
fails sh -c 'echo x >file'
cd /
echo 1 >/tmp/a/ready
until [ -e /tmp/a/go ]; do sleep 0.1; done
# What the guest knows is a second old at most.
sleep 1.1
is "$(cat /tmp/a/from-host)" changed 'what the host changed'
is "$(ls /tmp/a/by-host)" new 'what the host made'
must umount /tmp/a
must mount -t virtiofs files /tmp/a
must rm -r /tmp/a/folder/below
echo done
"#;

fn both_see(host: &mut Host) -> Checked {
    let script = format!(
        r#"
        mkdir -p /tmp/files /tmp/other
        echo secret >secret
        echo host >/tmp/files/from-host
        echo read-only >/tmp/other/file
        ln -s /etc/hostname /tmp/files/to-hosts-name
        ln -s /covisor/secret /tmp/files/to-hosts-secret
        ./covisor {MINI} --share /tmp/files,tag=files --share /tmp/other,ro,uid=1234,gid=1234 --exec {} \
            </dev/null >/tmp/guest 2>/tmp/errors & pid=$!
        until [ -e /tmp/files/ready ]; do
            kill -0 $pid || {{ cat /tmp/guest; cat /tmp/errors >&2; exit 30; }}
            sleep 0.05
        done
        echo changed >/tmp/files/from-host
        mkdir /tmp/files/by-host; echo >/tmp/files/by-host/new
        echo >/tmp/files/go
        wait $pid; status=$?
        cat /tmp/guest; cat /tmp/errors >&2
        [ $status = 0 ] || exit $status
        cd /tmp/files
        [ "$(md5sum large | cut -d' ' -f1)" = "$(cat large.md5)" ] && echo 'large: the same'
        stat -c '%n %a %u:%g %F' folder folder/moved folder/hard large.md5 pipe
        readlink guests-own
        ls -1 folder
        rm /covisor/secret
        "#,
        shell_word(IN_THE_GUEST)
    );
    let outcome = host.sh(&script)?;
    let expected = "done\nlarge: the same\nfolder 750 0:0 directory\nfolder/moved 644 1000:100 regular file\n\
                    folder/hard 644 1000:100 regular file\nlarge.md5 711 0:0 regular file\npipe 644 0:0 fifo\n\
                    /covisor/secret\nhard\nlink\nmoved\n";
    ensure!(outcome.status == 0 && outcome.stdout_text() == expected, "{}", told(&outcome));
    refused(host, "/tmp/none", "there is no such folder")?;
    refused(host, "/etc/hostname", "it is no folder")?;
    refused(host, "/tmp,tag=a --share /etc,tag=a", "two shared folders have the tag a")
}

/// A run that does not begin, with these words.
fn refused(host: &mut Host, share: &str, words: &str) -> Checked {
    let outcome = host.covisor(&format!("{MINI} --share {share} --exec true"))?;
    let stderr = outcome.stderr_text();
    ensure!(
        outcome.status == 1 && stderr.contains(words) && stderr.lines().count() == 1,
        "--share {share}: {}",
        told(&outcome)
    );
    Ok(())
}
