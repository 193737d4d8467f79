// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux guests with two network interfaces behind the daemon, whose back-ends are DPDK's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use viommu_tests::daemon::Daemon;
use viommu_tests::guest::{Guest, Testbed};
use viommu_tests::testpmd::Testpmd;

/// Long enough for a machine that has other things to do as well.
const BOOT: Duration = Duration::from_secs(240);

/// One interface is in a network of its own, so that what they say to each other goes through DPDK.
const NETWORK: &str = "
near=$(interface 0000:00:02.0)
far=$(interface 0000:00:03.0)
set_apart $far
apart ip address add 198.18.0.3/24 dev $far
apart ip link set $far up
ip address add 198.18.0.2/24 dev $near
ip link set $near up
";

/// Runs the program that follows at the far interface, with a connection as its input and output.
const LISTEN: &str = "apart nc -l -p 1000 -e";
/// Waits until there is somebody to connect to.
const LISTENS: &str = "until apart grep -q ':03E8 ' /proc/net/tcp6; do usleep 100000; done";

/// testpmd carries what comes in at one port to the other. A packet waits for the entries that it needs.
const FORWARD: [&str; 3] = ["set fwd io retry", "set burst tx delay 20 retry 10000", "start"];

/// Two interfaces behind the daemon, for one test.
struct Stage {
    testbed: Testbed,
    program: PathBuf,
    testpmd: Option<Testpmd>,
    daemon: Daemon,
    folder: TempDir,
}

impl Stage {
    fn new(arguments: &[&str]) -> Result<Option<Stage>> {
        let (Some(testbed), Some(program)) = (Testbed::find_for_test()?, Testpmd::find_for_test()?) else {
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("dpdk-").tempdir()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let socket = path("iommu.sock");
        let endpoint = |slot| {
            let (front, back) = (path(&format!("front-{slot}")), path(&format!("back-{slot}")));
            format!("00:0{slot}.0,vhost-user={front},backend={back}")
        };
        let (near, far) = (endpoint(2), endpoint(3));
        let own =
            ["--socket-path", &socket, "--guest-memory", "512M", "--endpoint", &near, "--endpoint", &far];
        let daemon = Daemon::start(own.iter().chain(arguments))?;
        Daemon::write_viot(
            &["--iommu", "00:01.0", "--endpoint", "00:02.0", "--endpoint", "00:03.0"],
            Path::new(&path("viot.dat")),
        )?;
        let mut stage = Stage { testbed, program, testpmd: None, daemon, folder };
        stage.start_testpmd()?;
        Ok(Some(stage))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_testpmd(&mut self) -> Result<()> {
        let ports = [self.path("back-2"), self.path("back-3")];
        self.testpmd = Some(Testpmd::start(&self.program, ports)?);
        self.command(&FORWARD)
    }

    fn command(&mut self, commands: &[&str]) -> Result<()> {
        self.testpmd.as_mut().context("no testpmd")?.command(commands)
    }

    /// A guest with both interfaces, which its kernel knows to be behind the IOMMU.
    fn guest(&self) -> Guest {
        self.guest_without_viot().viot(&self.path("viot.dat"))
    }

    fn guest_without_viot(&self) -> Guest {
        let guest = Guest::new(&self.testbed)
            .module("virtio_net")
            .chardev("iommu", &self.path("iommu.sock"))
            .device("vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=iommu,addr=1");
        [(2, 0), (3, 1)].into_iter().fold(guest, |guest, (slot, port)| self.with_interface(guest, slot, port))
    }

    /// With the address to which this port of testpmd sends what it makes up itself.
    fn with_interface(&self, guest: Guest, slot: u32, port: u32) -> Guest {
        let front = self.path(&format!("front-{slot}")).display().to_string();
        guest
            .argument("-chardev")
            .argument(format!("socket,id=port{port},path={front},reconnect-ms=200"))
            .argument("-netdev")
            .argument(format!("vhost-user,id=net{port},chardev=port{port}"))
            .device(&format!(
                "virtio-net-pci,netdev=net{port},mac=02:00:00:00:00:0{port},addr={slot},{INTERFACE}"
            ))
    }
}

/// QEMU serves a control queue itself, and would take IOVAs for GPAs there: the interface must not have one, nor what needs
/// one. testpmd computes no checksums, so that is left to the guest, which notices what goes wrong.
const INTERFACE: &str = "romfile=,iommu_platform=on,disable-legacy=on,\
    ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off,ctrl_mac_addr=off,guest_announce=off,csum=off,guest_csum=off";

/// The number before this word, in the daemon's account of what it has served.
fn counted(account: &str, word: &str) -> Result<u64> {
    let mut parts = account.split([',', ';']).filter_map(|part| part.trim().strip_suffix(word));
    let number = parts.next().and_then(|part| part.split_whitespace().last());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no {word} in {account}"))
}

#[test]
fn a_guest_that_unmaps_strictly_gets_100000_packets_through_dpdk_and_no_access_goes_astray() -> Result<()> {
    let Some(mut stage) = Stage::new(&[])? else { return Ok(()) };
    let job = format!(
        "{NETWORK}
        head -c 3000000 /dev/urandom >/tmp/stream
        {LISTEN} md5sum & {LISTENS}
        echo sent $(md5sum </tmp/stream)
        echo received $(nc 198.18.0.3 1000 </tmp/stream)
        echo flood me
        delivered() {{ awk '/^Udp: [0-9]/ {{ print $3 }}' /proc/net/snmp; }}
        until [ $(delivered) -ge 100000 ]; do usleep 100000; done
        echo damaged $(awk '/^Ip: [0-9]/ {{ print $5 }}' /proc/net/snmp)"
    );
    let mut guest = stage.guest().kernel_arg("iommu.strict=1").job(&job).spawn()?;
    let sent = guest.value_of("sent ", BOOT)?;
    assert_eq!(guest.value_of("received ", BOOT)?, sent);
    guest.wait_for("flood me", BOOT)?;
    // Now testpmd makes packets up, as many as the interfaces take.
    stage.command(&["stop", "set fwd txonly retry", "set txpkts 1000", "start"])?;
    assert_eq!(guest.value_of("damaged ", BOOT)?, "0");
    guest.wait_for("guest: job ended 0", BOOT)?;
    guest.wait_for_exit(BOOT)?;
    let account = stage.daemon.wait_for("VMM disconnected, endpoints are blocked; served", BOOT)?;
    let [unmaps, refused, faults] = ["UNMAP", "refused", "faults"].map(|word| counted(&account, word));
    assert!(unmaps? > 1500, "{account}");
    assert_eq!((refused?, faults?), (0, 0), "{}", stage.daemon.lines().join("\n"));
    Ok(())
}

/// The same guest without a driver for its IOMMU, so that its addresses are GPAs: what DPDK reaches is the daemon's choice.
#[test]
fn without_a_translation_dpdk_reaches_nothing() -> Result<()> {
    let ping = "if ping -c 3 -w 10 198.18.0.3; then echo answered yes; else echo answered no; fi";
    for (bypass, answered) in [("on", "yes"), ("off", "no")] {
        let Some(stage) = Stage::new(&["--boot-bypass", bypass])? else { return Ok(()) };
        let mut guest = stage.guest_without_viot().job(&format!("{NETWORK}{ping}")).spawn()?;
        assert_eq!(guest.value_of("answered ", BOOT)?, answered, "with bypass {bypass}");
        let is_refused = stage.daemon.lines().iter().any(|line| line.contains("it is attached to no domain"));
        assert_eq!(is_refused, bypass == "off", "{}", stage.daemon.lines().join("\n"));
    }
    Ok(())
}

#[test]
fn a_guest_outlives_dpdk_and_uses_the_one_that_comes_after_it() -> Result<()> {
    let Some(mut stage) = Stage::new(&[])? else { return Ok(()) };
    let job = format!(
        "{NETWORK}
        answers() {{ until ping -c 1 -w 5 198.18.0.3; do echo no answer; done; }}
        carrier() {{ until [ $(cat /sys/class/net/$near/carrier) = $1 ]; do usleep 100000; done; }}
        answers
        {LISTEN} cat & {LISTENS}
        yes | nc 198.18.0.3 1000 >/dev/null &
        until [ $(cat /sys/class/net/$near/statistics/tx_packets) -ge 200 ]; do usleep 100000; done
        echo streaming
        carrier 0
        device=$(basename /sys/bus/pci/devices/0000:00:02.0/virtio*)
        echo $device >/sys/bus/virtio/drivers/virtio_net/unbind
        echo $device >/sys/bus/virtio/drivers/virtio_net/bind
        near=$(interface 0000:00:02.0)
        ip address add 198.18.0.2/24 dev $near
        ip link set $near up
        echo on its own
        carrier 1
        answers
        echo answered"
    );
    let mut guest = stage.guest().kernel_arg("iommu.strict=1").job(&job).spawn()?;
    guest.wait_for("streaming", BOOT)?;
    stage.testpmd = None;
    // All that one interface had mapped is unmapped, rings and buffers are mapped anew; the other just waits.
    guest.wait_for("on its own", BOOT)?;
    stage.start_testpmd()?;
    guest.wait_for("answered", BOOT)?;
    let log = stage.daemon.lines();
    assert!(!log.iter().any(|line| line.contains("fault:")), "{}", log.join("\n"));
    Ok(())
}
