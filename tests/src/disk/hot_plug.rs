//! Disks that come and go while the guest runs.

use xtask::run::shell_word;

use crate::checked::{Checked, ensure, told};
use crate::host::{Host, MINI};

/// A disk is added, gets a file system, is let go and removed; added again, it is removed while the file system is in use. What was
/// flushed is there for the next guest.
pub(super) fn comes_and_goes(host: &mut Host) -> Checked {
    // A guest of engine coop cannot be told: somebody in it has to ask the bus.
    let (find, let_go) = match host.engine() {
        "coop" => ("echo 1 >/sys/bus/pci/rescan", "echo 1 >/sys/bus/pci/devices/0000:00:10.0/remove"),
        _ => (":", ":"),
    };
    let command = format!(
        "for round in 1 2; do
            echo ready; read line
            {find}
            for i in $(seq 100); do [ -b /dev/vda ] && break; sleep 0.1; done
            [ $round = 2 ] || mke2fs /dev/vda >/dev/null
            mount -t ext4 /dev/vda /mnt && cat /mnt/file 2>/dev/null; echo round $round >>/mnt/file; sync; echo mounted
            read line
            [ $round = 2 ] || umount /mnt
            {let_go}; echo released
        done 2>&1
        read line; ls /dev/vd* 2>/dev/null; echo end"
    );
    let script = format!(
        r#"
        ./covisor image create /tmp/hot.qcow2 32 >/dev/null || exit
        trap '' PIPE
        mkfifo /tmp/in; : >/tmp/out
        ./covisor {MINI} --verbose --name hot --exec {} </tmp/in >/tmp/out 2>/tmp/errors & pid=$!
        exec 3>/tmp/in
        said() {{
            for i in $(seq 1200); do
                [ "$(grep -c "$1" /tmp/out)" -ge "$2" ] && return
                kill -0 $pid 2>/dev/null || break
                sleep 0.1
            done
            echo "the guest did not say $1 for the time number $2" >&2
            cat /tmp/out /tmp/errors >&2
            kill $pid; wait $pid
            exit 1
        }}
        for round in 1 2; do
            said ready $round
            ./covisor disk add hot /tmp/hot.qcow2
            ./covisor disk add hot /tmp/hot.qcow2 && echo twice
            echo >&3; said mounted $round
            ./covisor disk list hot | tail -n +2 | tr -s ' '
            echo >&3; said released $round
            ./covisor disk remove hot disk$((round - 1)) && echo removed
            ./covisor disk list hot | wc -l
            ./covisor image check /tmp/hot.qcow2 >/dev/null || echo damaged
        done
        ./covisor disk remove hot disk0 && echo removed twice
        echo >&3
        wait $pid; status=$?
        exec 3>&-
        cat /tmp/out; cat /tmp/errors >&2
        exit $status
        "#,
        shell_word(&command)
    );
    let outcome = host.sh(&script)?;
    let text = outcome.stdout_text();
    let listed = |disk| format!("{disk} 0000:00:10.0 qcow2 writable /tmp/hot.qcow2");
    let expected = format!(
        "disk0\n{}\nremoved\n1\ndisk1\n{}\nremoved\n1\nready\nmounted\nreleased\nready\nround 1\nmounted\nreleased\nend\n",
        listed("disk0"),
        listed("disk1")
    );
    ensure!(outcome.status == 0 && text == expected, "expected\n{expected}: {}", told(&outcome));
    let errors = outcome.stderr_text();
    for word in ["another process has it open", "the guest has no disk disk0", "the guest has let disk1 go"] {
        ensure!(errors.contains(word), "nobody says that {word}: {}", told(&outcome));
    }
    let command = "mount -t ext4 /dev/vda /mnt && cat /mnt/file";
    let outcome =
        host.sh(&format!("exec ./covisor {MINI} --disk /tmp/hot.qcow2,ro --exec {} </dev/null", shell_word(command)))?;
    ensure!(outcome.status == 0 && outcome.stdout == b"round 1\nround 2\n", "{}", told(&outcome));
    Ok(())
}
