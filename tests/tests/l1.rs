// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The arm64 host itself: it has what tests of iommufd and VFIO need. What programs of ours do there without a guest.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use viommu_tests::l1::{self, Machine, Report, Testbed};

/// Far more than a busy machine takes.
const WITHIN: Duration = Duration::from_secs(300);
const EDU: &str = "edu,dma_mask=0xffffffffffff";

/// Runs the job to its end, which has to be a good one.
fn run(machine: Machine) -> Result<Report> {
    let report = machine.run(WITHIN)?;
    assert_eq!(report.status, 0, "{}", report.lines.join("\n"));
    Ok(report)
}

#[test]
fn the_host_has_iommufd_with_mock_devices_and_nesting_and_gives_a_device_to_vfio() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let job = "zcat /proc/config.gz | grep -E '^CONFIG_(IOMMUFD_TEST|ARM_SMMU_V3_IOMMUFD|VFIO_DEVICE_CDEV)='
        ls -1 /dev/iommu /dev/kvm
        ls -d /sys/kernel/debug/fail_iommufd
        dmesg | grep -o 'Table Upgrade: override .*'
        edu=$(pci_functions 1234:11e8)
        device=$(give_to_vfio $edu)
        echo device $device, $(ls /sys/class/vfio-dev), $(ls /dev/vfio/devices)
        echo group of $(cat /sys/bus/pci/devices/$edu/iommu_group/type)";
    let report = run(Machine::new(&testbed).device(EDU).job(job))?;
    println!("launch to init: {:.1} s", report.boot.as_secs_f64());
    let expected = [
        "CONFIG_ARM_SMMU_V3_IOMMUFD=y",
        "CONFIG_IOMMUFD_TEST=y",
        "CONFIG_VFIO_DEVICE_CDEV=y",
        "/dev/iommu",
        "/dev/kvm",
        // Made by iommufd's own tests, when they are ready.
        "/sys/kernel/debug/fail_iommufd",
        "Table Upgrade: override [IORT-BOCHS -BXPC    ]",
        "device vfio0, vfio0, vfio0",
        "group of DMA",
    ];
    for line in expected {
        assert!(report.lines.iter().any(|found| found == line), "{line}\nin {:#?}", report.lines);
    }
    Ok(())
}

#[test]
fn a_static_program_of_ours_runs_in_the_host() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let daemon = l1::build("vhost-user-iommu", "vhost-user-iommu")?;
    let report = run(Machine::new(&testbed).program("daemon", &daemon).job("daemon --version; uname -m"))?;
    assert_eq!(report.lines, [concat!("vhost-user-iommu ", env!("CARGO_PKG_VERSION")), "aarch64"]);
    Ok(())
}

/// A shell script is the VMM.
#[test]
fn launch_opens_a_device_that_the_vmm_shares_until_it_is_removed() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let daemon = l1::build("vhost-user-iommu", "vhost-user-iommu")?;
    let job = "edu=$(pci_functions 1234:11e8)
        cat >vmm <<'end'
        echo $1
        readlink /proc/$$/fd/$2
        readlink /proc/$$/fd/$3
        ctl() { daemon ctl --socket /control.sock \"$@\" 2>&1; }
        count() { echo $(ls -l /proc/$(pidof daemon)/fd | grep -c vfio/devices) of the daemon; }
        ctl list; count
        ctl remove 00:03.0; ctl list; count
        ctl remove 00:03.0
end
        launch() {
          daemon launch --socket-path /iommu.sock --control /control.sock --endpoint 00:03.0,vfio=$edu -- \
            /bin/busybox sh vmm {iommufd},{vfio:00:03.0},{iommufd} {iommufd} {vfio:00:03.0} || echo status $?
        }
        launch 2>&1
        give_to_vfio $edu
        launch
        while [ -e /iommu.sock ]; do usleep 10000; done
        echo $(ls -d /control.sock /tmp/* 2>/dev/null) nothing left";
    let report = run(Machine::new(&testbed).device(EDU).program("daemon", &daemon).job(job))?;
    let lines = report.lines.join("\n");
    for part in [
        "is bound to no driver, but has to be to vfio-pci; as root: modprobe vfio-pci && echo vfio-pci > ",
        "status 2\nvfio0\n",
        "\n/dev/iommu\n/dev/vfio/devices/vfio0\n00:03.0: vfio 0000:00:01.0, blocked: there is no VMM\n1 of the daemon\n",
        "\n00:03.0: vfio, its device is removed, blocked: there is no VMM\n0 of the daemon\n",
        "\nvhost-user-iommu: the endpoint has no device\n",
        "\nstatus 1\n",
        "\nnothing left",
    ] {
        assert!(lines.contains(part), "{part}\nin {lines}");
    }
    Ok(())
}

/// Runs a test program of viommu-nested that needs the mock driver.
fn run_with_mock(test: &str) -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let tests = l1::build_test("viommu-nested", test, "mock")?;
    let report = Machine::new(&testbed).program("tests", &tests).job("tests").run(WITHIN)?;
    assert_eq!(report.status, 0, "{}", report.lines.join("\n"));
    println!("{}", report.lines.join("\n"));
    Ok(())
}

/// The daemon with devices that do DMA, by the tests in `tests/vfio_vmm`. The environment variable `VFIO_TESTS` has further
/// arguments for them, such as a part of a name; `VFIO_REQUESTS` is passed on, see `tests/vfio_vmm/endurance.rs`.
#[test]
fn devices_reach_what_the_guest_says_and_nothing_else() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let stand_in = concat!(env!("CARGO_MANIFEST_DIR"), "/l1/setpriv");
    let arguments = env::var("VFIO_TESTS").unwrap_or_default();
    let requests = env::var("VFIO_REQUESTS").map(|count| format!("export VFIO_REQUESTS={count}"));
    let within = if requests.is_ok() { 20 * WITHIN } else { 2 * WITHIN };
    let job = "for function in $(pci_functions 1b36:0005) $(pci_functions 1234:11e8); do
          give_to_vfio $function >/dev/null
        done";
    let job = format!("{job}\n{}\ntests --test-threads=1 {arguments}", requests.unwrap_or_default());
    let report = Machine::new(&testbed)
        .device("iommu-testdev")
        .device("iommu-testdev")
        .device(EDU)
        // A pair that shares a group: nothing keeps the functions of one such device from each other.
        .device("iommu-testdev,addr=10.0,multifunction=on")
        .device("iommu-testdev,addr=10.1")
        .program("setpriv", Path::new(stand_in))
        .program("vhost-user-iommu", &l1::build("vhost-user-iommu", "vhost-user-iommu")?)
        .program("tests", &l1::build_test("viommu-tests", "vfio_vmm", "l1")?)
        .job(&job)
        .run(within)?;
    assert_eq!(report.status, 0, "{}", report.lines.join("\n"));
    println!("{}", report.lines.join("\n"));
    Ok(())
}

/// Every owner and command.
#[test]
fn iommufd_does_for_the_mock_what_it_is_asked() -> Result<()> {
    run_with_mock("mock")
}

#[test]
fn the_address_spaces_of_a_guest_follow_its_mappings_whatever_fails() -> Result<()> {
    run_with_mock("shadow")
}

/// The same with devices that do DMA through an SMMUv3.
#[test]
fn vfio_does_for_devices_what_it_is_asked() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let tests = l1::build_test("viommu-nested", "cdev", "cdev-tests")?;
    let job = "set -- $(pci_functions 1b36:0005)
        export TESTDEV=$(give_to_vfio $1)
        export PAIR=\"$(give_to_vfio $2) $(give_to_vfio $3)\"
        for edu in $(pci_functions 1234:11e8); do
          case $edu in
            0000:00:*) export EDU=$(give_to_vfio $edu) ;;
            *) export EDU_BEHIND_PORT=$(give_to_vfio $edu) ;;
          esac
        done
        tests --test-threads=1";
    let machine = Machine::new(&testbed)
        .device(EDU)
        .device("iommu-testdev")
        // They share a group: nothing keeps the functions of one such device from each other.
        .device("iommu-testdev,addr=10.0,multifunction=on")
        .device("iommu-testdev,addr=10.1")
        .device("pcie-root-port,id=port1,chassis=1")
        .device(&format!("{EDU},bus=port1"));
    let report = run(machine.program("tests", &tests).job(job))?;
    println!("{}", report.lines.join("\n"));
    Ok(())
}

#[test]
fn a_job_that_fails_reports_its_status_and_what_the_kernel_said() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let job = "echo cause >/dev/kmsg; printf before; exit 7; echo never";
    let report = Machine::new(&testbed).job(job).run(WITHIN)?;
    assert_eq!(report.status, 7);
    assert!(report.lines.iter().any(|line| line.ends_with("cause")), "{:#?}", report.lines);
    assert!(report.lines[0].starts_with("before"), "{:#?}", report.lines);
    assert!(!report.lines.iter().any(|line| line.contains("never")));
    Ok(())
}

#[test]
fn a_job_that_does_not_end_is_killed_and_the_end_of_its_console_shown() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let mut machine = Machine::new(&testbed).job("echo still here; sleep 1000").spawn()?;
    machine.wait_for("still here", WITHIN)?;
    let failure = machine.wait_for("l1: job ended", Duration::from_millis(10)).unwrap_err().to_string();
    assert!(failure.contains("job ended") && failure.contains("still here"), "{failure}");
    Ok(())
}

#[test]
fn an_argument_that_qemu_refuses_is_reported_in_its_own_words() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else {
        return Ok(());
    };
    let failure = Machine::new(&testbed).device("no-such-device").run(WITHIN).unwrap_err().to_string();
    assert!(failure.contains("QEMU exited") && failure.contains("no-such-device"), "{failure}");
    Ok(())
}
