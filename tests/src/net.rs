//! Networks: what guests reach through the host, and the host of guests.

use xtask::run::shell_word;
use xtask::scenario::Scenario;

use crate::checked::{Checked, ensure, told};
use crate::debian::{on_debian, run_with};
use crate::host::{Host, MINI, on_host};

/// The scenarios about networks.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("net/through-nat", |env, kind| on_host(env, kind, |host| through_nat(host, SOME))),
    Scenario::new("net/256-mib-through-nat", |env, kind| on_host(env, kind, |host| through_nat(host, MUCH)))
        .on_demand(),
    Scenario::new("net/tap-in-a-bridge", |env, kind| on_host(env, kind, tap_in_a_bridge)),
    Scenario::new("net/hostile-frames", |env, kind| on_host(env, kind, hostile_frames)),
    Scenario::new("net/reach-is-limited", |env, kind| on_host(env, kind, reach_is_limited)).on_demand(),
    Scenario::new("net/ports-outlive-a-reset", |env, kind| on_host(env, kind, ports_outlive_a_reset)).on_demand(),
    Scenario::new("net/debian-and-ssh", |env, kind| on_debian(env, kind, "6.1.", "-cloud-amd64", debian_and_ssh))
        .on_demand(),
];

/// What of them is tried with every engine.
pub(crate) const BRIEF: Scenario =
    Scenario::new("net/briefly-through-nat", |env, kind| on_host(env, kind, |host| through_nat(host, LITTLE)));

/// How much goes over the network, each by IPv4 and by IPv6.
#[derive(Debug, Clone, Copy)]
struct Amounts {
    /// Bytes that the guest gets.
    down: u32,
    /// Bytes that it gives, and that the host gets of it.
    up: u32,
    /// Short connections.
    connections: u32,
    /// Datagrams.
    datagrams: u32,
    /// Waits until the network has forgotten the guest's datagrams, too.
    waits: bool,
}

/// A whole download, and connections without number.
const MUCH: Amounts = Amounts { down: 256 << 20, up: 32 << 20, connections: 1000, datagrams: 200, waits: true };
const SOME: Amounts = Amounts { down: 8 << 20, up: 4 << 20, connections: 100, datagrams: 20, waits: false };
const LITTLE: Amounts = Amounts { down: 1 << 20, up: 1 << 19, connections: 10, datagrams: 3, waits: false };

/// Bytes of a datagram that fits the link, and of one that the link divides.
const DATAGRAM: u32 = 1400;
const LARGE_DATAGRAM: u32 = 9000;

/// Sockets that stay for up to three minutes: for datagrams of each size and for pings, by IPv4 and IPv6.
const FLOWS: u64 = 6;
const FORGOTTEN: u32 = 190;

/// KiB that the loader may have more afterwards: what its allocator keeps.
const MOST_MORE_KIB: u64 = 8192;

/// The gateway, as it is for the first adapter.
const GATEWAY: &str = "10.0.2.2";
const GATEWAY6: &str = "fd2e:91b7:6c04:2::2";
/// Addresses that the host gives itself, for what is neither gateway nor guest.
const OUTSIDE: &str = "192.0.2.1";
const OUTSIDE6: &str = "2001:db8::1";

/// Has servers run in the host, and ends them and all else that was begun with the script.
const SERVERS: &str = r#"
ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo
echo 'nameserver 127.0.0.1' >/etc/resolv.conf
# As systemd sets it.
echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range
./net-work serve 7000 --names >/tmp/server & servers=$!
httpd -f -p 8000 -h /covisor & servers="$servers $!"
trap 'kill $servers; wait 2>/dev/null; ip addr del 192.0.2.1/32 dev lo; ip addr del 2001:db8::1/128 dev lo; rm /etc/resolv.conf' EXIT
until grep -qs ready /tmp/server; do sleep 0.02; done
"#;

/// What the guest does: it fetches its program, and waits for its IPv6 address, then for the host between the steps.
const IN_THE_GUEST: &str = r#"
wget -q -O /tmp/net-work http://10.0.2.2:8000/net-work || exit 20
chmod 755 /tmp/net-work
for try in $(seq 100); do
    ip -6 addr show dev eth0 scope global | grep -v tentative | grep -q inet6 && break
    sleep 0.1
done
# Out of a file, where the word is before the host has connected and said all that it says: nc ends when that is over.
echo go >/tmp/go
wait_for_host() { echo "$1"; nc -l -p 9 </tmp/go >/dev/null; }
must() { "$@" || { echo "failed: $*"; exit 21; }; }
"#;

fn through_nat(host: &mut Host, amounts: Amounts) -> Checked {
    let Amounts { down, up, connections, datagrams, waits } = amounts;
    let (rest, flows) = if waits { (FORGOTTEN, 0) } else { (1, FLOWS) };
    let work = |server: &str| {
        format!(
            "must /tmp/net-work get {server} {down}
            must /tmp/net-work put {server} {up}
            must /tmp/net-work short {server} {connections}
            must /tmp/net-work datagrams {server} {datagrams} {DATAGRAM}
            must /tmp/net-work datagrams {server} 2 {LARGE_DATAGRAM}\n"
        )
    };
    let guest = format!(
        "{IN_THE_GUEST}
        must ping -c 2 -W 5 {GATEWAY}
        must ping6 -c 2 -W 5 {GATEWAY6}
        must nslookup host.test
        nslookup host.nowhere && echo 'failed: a name that is not'
        wait_for_host up
        {}{}{}
        httpd -p 80 -h /etc
        /tmp/net-work serve 7000 >/dev/null &
        wait_for_host serves",
        work(&format!("{GATEWAY}:7000")),
        work(&format!("[{GATEWAY6}]:7000")),
        format_args!(
            "must /tmp/net-work short {OUTSIDE}:7000 1
            must /tmp/net-work short [{OUTSIDE6}]:7000 1
            must ping -c 1 -W 5 {OUTSIDE}
            must ping6 -c 1 -W 5 {OUTSIDE6}"
        ),
    );
    let from_host = |server: &str| {
        format!(
            "./net-work get {server} {up} && ./net-work put {server} {up} && ./net-work short {server} {connections} &&
            ./net-work datagrams {server} {datagrams} {DATAGRAM} || exit 32\n"
        )
    };
    let script = format!(
        r#"{SERVERS}
        ./covisor {MINI} --net nat,forward=tcp:7001:7000,forward=udp:7001:7000,forward=tcp:8080:80,forward=tcp:7009:9 \
            --exec {} </dev/null >/tmp/guest 2>/tmp/errors & pid=$!
        wait_for_guest() {{
            until grep -qsx "$1" /tmp/guest; do
                kill -0 $pid || {{ cat /tmp/guest; cat /tmp/errors >&2; exit 30; }}
                sleep 0.05
            done
        }}
        let_go() {{ until nc -w 20 127.0.0.1 7009 </dev/null | grep -q go; do kill -0 $pid || exit 31; sleep 0.05; done; }}
        uses() {{ echo "$1 $(ls /proc/$pid/fd | wc -l) $(grep VmRSS /proc/$pid/status | tr -dc 0-9)"; }}
        wait_for_guest up
        uses before
        let_go
        wait_for_guest serves
        {}{}
        wget -q -O - http://127.0.0.1:8080/hostname
        wget -q -O - http://[::1]:8080/hostname
        # A connection is gone a moment after its end.
        sleep {rest}
        uses after
        let_go
        wait $pid; status=$?
        cat /tmp/guest; cat /tmp/errors >&2
        exit $status"#,
        shell_word(&guest),
        from_host("127.0.0.1:7001"),
        from_host("[::1]:7001"),
    );
    let outcome = host.sh(&script)?;
    let text = outcome.stdout_text();
    ensure!(outcome.status == 0 && !text.contains("failed:"), "{}", told(&outcome));
    ensure!(text.lines().filter(|line| *line == "mini").count() == 2, "no page of the guest's: {}", told(&outcome));
    let uses = |when: &str| -> Option<(u64, u64)> {
        let line = text.lines().find_map(|line| line.strip_prefix(when))?;
        let (descriptors, kib) = line.trim().split_once(' ')?;
        Some((descriptors.parse().ok()?, kib.parse().ok()?))
    };
    let (Some(before), Some(after)) = (uses("before "), uses("after ")) else {
        return Err(crate::checked::Failure::Seen(format!("the loader's use is not told: {}", told(&outcome))));
    };
    ensure!(
        after.0 <= before.0 + flows,
        "{} descriptors were open before, {} after: {}",
        before.0,
        after.0,
        told(&outcome)
    );
    ensure!(
        after.1 <= before.1 + MOST_MORE_KIB,
        "the loader had {} KiB before and {} KiB after: {}",
        before.1,
        after.1,
        told(&outcome)
    );
    Ok(())
}

/// The host's own interface in a bridge of the host's: nothing of the loader's answers there.
fn tap_in_a_bridge(host: &mut Host) -> Checked {
    let guest = "
        ip addr add 198.51.100.2/24 dev eth0; echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
        ip addr add fd00:5::2/64 dev eth0
        wget -q -O /tmp/net-work http://198.51.100.1:8000/net-work || exit 20
        chmod 755 /tmp/net-work
        for server in 198.51.100.1:7000 [fd00:5::1]:7000; do
            /tmp/net-work get $server 4194304 && /tmp/net-work put $server 4194304 &&
            /tmp/net-work datagrams $server 3 9000 || exit 21
        done
        cat /sys/class/net/eth0/mtu";
    let outcome = host.sh(&format!(
        "modprobe tun && modprobe bridge && brctl addbr br0 || exit 40
        echo 0 >/proc/sys/net/ipv6/conf/br0/accept_dad
        ip addr add 198.51.100.1/24 dev br0; ip addr add fd00:5::1/64 dev br0; ip link set br0 up
        ./net-work serve 7000 >/tmp/server & servers=$!
        httpd -f -p 8000 -h /covisor & servers=\"$servers $!\"
        trap 'kill $servers; wait 2>/dev/null; ip link set br0 down; brctl delbr br0; rmmod bridge tun' EXIT
        ./covisor {MINI} --net tap=vm0,bridge=br0,mtu=4000 --exec {} </dev/null || exit
        ip link show vm0 2>/dev/null && echo 'the interface outlived the guest'
        ./covisor {MINI} --net tap=lo --exec true </dev/null; echo \"status $?\"",
        shell_word(guest),
    ))?;
    let (text, errors) = (outcome.stdout_text(), outcome.stderr_text());
    ensure!(
        outcome.status == 0
            && text.contains("\n4000\nstatus 1\n")
            && !text.contains("outlived")
            && errors.contains("the interface `lo` is no TAP device"),
        "{}",
        told(&outcome)
    );
    Ok(())
}

/// A guest that resets has its network as before, forwarded ports included.
fn ports_outlive_a_reset(host: &mut Host) -> Checked {
    // A shell is on the console.
    let outcome = host.sh(&format!(
        r#"
        cd /tmp && mkfifo keys && : >out
        wait_for_prompts() {{
            for i in $(seq 600); do
                [ "$(grep -o '[~/] # ' out | wc -l)" -ge "$1" ] && return
                sleep 0.1
            done
            echo "no prompt number $1" >&2
        }}
        (cd /covisor && exec ./covisor {MINI} --net nat,forward=tcp:7009:9) <keys >out & pid=$!
        exec 3>keys
        for boot in 1 2; do
            wait_for_prompts $boot
            echo "echo boot $boot | nc -l -p 9; [ $boot = 2 ] && poweroff -f || reboot -f" >&3
            until nc -w 20 127.0.0.1 7009 </dev/null | grep "boot $boot"; do kill -0 $pid || exit 31; sleep 0.2; done
        done
        wait $pid"#
    ))?;
    ensure!(outcome.status == 0 && outcome.stdout == b"boot 1\nboot 2\n", "{}", told(&outcome));
    Ok(())
}

/// Debian sets its adapter up by itself. Its ssh server is reached by a port of the host's, from the guest itself: by way of the
/// gateway, the host's loopback address and the forwarded port, whose two ends so are one guest's.
fn debian_and_ssh(host: &mut Host) -> Checked {
    let guest = format!(
        "for try in $(seq 200); do getent ahostsv4 host.test >/dev/null && break; sleep 0.1; done
        ip -4 -o addr show scope global | grep -o 10.0.2.15/24 || exit 21
        for try in $(seq 200); do ip -6 -o addr show scope global -tentative | grep -q fd2e && break; sleep 0.1; done
        getent ahostsv4 host.test | grep STREAM || exit 22
        ping -c 1 {GATEWAY} >/dev/null && ping -c 1 {GATEWAY6} >/dev/null || exit 23
        mkdir -p /etc/dropbear && dropbear -R -B -E 2>/root/log
        head -c 4194304 /dev/urandom >/root/data
        sha256sum </root/data
        for server in {GATEWAY} {GATEWAY6}; do dbclient -y -y -p 2222 root@$server sha256sum </root/data || {{ cat /root/log; exit 24; }}; done
        rm /root/data"
    );
    let outcome = host.sh(&format!(
        r#"{SERVERS}
        ./covisor {} </dev/null & pid=$!
        wait $pid"#,
        run_with("--net nat,forward=tcp:2222:22", &guest)
    ))?;
    let text = outcome.stdout_text();
    let sums: Vec<&str> = text.lines().filter(|line| line.ends_with("  -")).collect();
    let are_same = matches!(sums[..], [own, four, six] if own == four && own == six);
    let is_set_up = text.contains("10.0.2.15/24\n") && text.contains(&format!("{OUTSIDE} "));
    ensure!(outcome.status == 0 && are_same && is_set_up, "{}", told(&outcome));
    Ok(())
}

/// Frames that no stack would send, two thousand of them; after that the network is as it was.
fn hostile_frames(host: &mut Host) -> Checked {
    let guest = format!(
        "{IN_THE_GUEST}
        for seed in 1 2; do must /tmp/net-work disturb eth0 1000 $seed; done
        must /tmp/net-work get {GATEWAY}:7000 100000
        must /tmp/net-work get [{GATEWAY6}]:7000 100000
        must /tmp/net-work datagrams {GATEWAY}:7000 3 {LARGE_DATAGRAM}
        must nslookup host.test"
    );
    let outcome = host.sh(&format!(
        r#"{SERVERS}
        ./covisor {MINI} --net nat --exec {} </dev/null & pid=$!
        wait $pid"#,
        shell_word(&guest)
    ))?;
    let text = outcome.stdout_text();
    ensure!(outcome.status == 0 && !text.contains("failed:"), "{}", told(&outcome));
    let sent = |line: &str| -> Option<u32> { line.split_once(" frames went out")?.0.parse().ok() };
    let all: u32 = text.lines().filter_map(sent).sum();
    ensure!(all > 1000, "only {all} frames went out: {}", told(&outcome));
    Ok(())
}

/// What the host's user keeps from the guest.
fn reach_is_limited(host: &mut Host) -> Checked {
    let guest = format!(
        "for server in {GATEWAY}:7000 {OUTSIDE}:7000 169.254.169.254:80; do
            echo x | nc -w 5 ${{server%:*}} ${{server#*:}} >/dev/null 2>&1 && echo reaches ${{server%:*}} || echo no ${{server%:*}}
        done
        nslookup host.test >/dev/null 2>&1 && echo resolves
        echo 'from the guest' | nc -l -p 9"
    );
    let mut run = |net: &str| {
        host.output(&format!(
            r#"{SERVERS}
            ip addr add 169.254.169.254/32 dev lo
            ./covisor {MINI} --net nat,forward=tcp:7009:9,{net} --exec {} </dev/null >/tmp/guest 2>/tmp/errors & pid=$!
            until nc -w 20 127.0.0.1 7009 </dev/null | grep 'from the guest'; do kill -0 $pid || exit 31; sleep 0.2; done
            wait $pid; ip addr del 169.254.169.254/32 dev lo
            cat /tmp/guest"#,
            shell_word(&guest)
        ))
    };
    let (loopback, nothing) = (run("no-loopback")?, run("restrict")?);
    ensure!(
        loopback == format!("from the guest\nno {GATEWAY}\nreaches {OUTSIDE}\nno 169.254.169.254\nresolves\n"),
        "with no-loopback: {loopback}"
    );
    ensure!(
        nothing == format!("from the guest\nno {GATEWAY}\nno {OUTSIDE}\nno 169.254.169.254\n"),
        "with restrict: {nothing}"
    );
    Ok(())
}
