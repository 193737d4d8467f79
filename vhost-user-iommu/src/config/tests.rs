// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a command line and a configuration file come to together.

use std::{fs, path::Path};

use viommu_core::EndpointId;

use super::*;

fn config(words: &[&str]) -> Config {
    let words = ["vhost-user-iommu"].iter().chain(words);
    match parse(words).expect("valid") {
        Command::Serve(config) => config,
        other => panic!("not a configuration: {other:?}"),
    }
}

fn refusal(words: &[&str]) -> String {
    let words = ["vhost-user-iommu"].iter().chain(words);
    parse(words).expect_err("not valid").to_string()
}

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(start, last).expect("ordered")
}

#[test]
fn without_options_the_whole_space_is_the_aperture_and_boot_is_in_bypass() {
    assert_eq!(
        config(&["--socket-path", "iommu.sock"]),
        Config {
            listen: Listen::Path("iommu.sock".into()),
            endpoints: Vec::new(),
            iommufd: None,
            mode: Mode::Map,
            page_size_mask: 0x4020_1000,
            aperture: IovaRange::ALL,
            boot_bypass: true,
            msi_region: Some(range(0xfee0_0000, 0xfeef_ffff)),
            msi_region_is_given: false,
            limits: Limits {
                domains_max: 4096,
                mappings_max: 1_048_576,
                mapping_bytes_max: 96 << 20,
                faults_max: 256,
                ..Limits::default()
            },
            exit_with: None,
            control: None,
            unmap_timeout: Duration::from_secs(2),
            poll: Duration::from_micros(200),
            log_level: LevelFilter::Info,
        }
    );
}

#[test]
fn every_option_reaches_the_configuration() {
    let text = "--mode table --table-feature-bit 8 --fd 7 --endpoint 0:2.0 --endpoint 9 --endpoint 0xa,pasid=on,vfio=fd:8 --iommufd 9 --exit-with 10 --control c --granule 2M --aperture 1G-0x7fffffff \
                --boot-bypass off --msi-region none --unmap-timeout 150 --poll 7 --log-level trace --max-domains 1 \
                --max-mappings 2 --max-mapping-memory 4k --max-faults 3";
    let words: Vec<_> = text.split_whitespace().collect();
    let config = config(&words);
    let ids: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.id).collect();
    assert_eq!(ids, [EndpointId(0x10), EndpointId(9), EndpointId(10)]);
    assert_eq!(config.endpoints[2].kind, EndpointKind::Vfio { device: VfioDevice::Fd(8), pasid: true });
    assert_eq!((config.iommufd, config.exit_with), (Some(9), Some(10)));
    assert_eq!(config.control, Some("c".into()));
    assert!(config.msi_region_is_given);
    assert_eq!(config.listen, Listen::Fd(7));
    assert_eq!(config.page_size_mask, 0x4020_0000);
    assert_eq!(config.aperture, range(1 << 30, 0x7fff_ffff));
    assert_eq!((config.boot_bypass, config.msi_region), (false, None));
    assert_eq!((config.unmap_timeout, config.log_level), (Duration::from_millis(150), LevelFilter::Trace));
    assert_eq!(config.mode, Mode::Table { feature_bit: 8 });
    assert_eq!(config.poll, Duration::from_micros(7));
    let limits = Limits {
        domains_max: 1,
        mappings_max: 2,
        mapping_bytes_max: 4096,
        faults_max: 3,
        ..Limits::default()
    };
    assert_eq!(config.limits, limits);
}

#[test]
fn table_mode_has_the_usual_feature_bit_and_no_vhost_user_endpoints() {
    assert_eq!(config(&["--fd=3", "--mode=table"]).mode, Mode::Table { feature_bit: 7 });
    for (words, problem) in [
        (
            vec!["--fd=3", "--table-feature-bit=8"],
            "--table-feature-bit 8: a device of mappings has no such feature; ",
        ),
        (
            vec!["--fd=3", "--mode=table", "--guest-memory=1G", "--endpoint=1,vhost-user=f,backend=b"],
            "--endpoint 1: in table mode hardware walks the guest's tables, ",
        ),
        (
            vec!["--fd=3", "--mode=table", "--table-feature-bit=24"],
            "--table-feature-bit 24: `24` is not a whole number",
        ),
    ] {
        let error = refusal(&words);
        assert!(error.starts_with(problem), "{error}");
    }
}

#[test]
fn physical_devices_leave_the_whole_space_as_the_aperture() {
    let config = config(&["--fd=3", "--iommufd=4", "--endpoint=1,vfio=fd:5", "--endpoint=2,vfio=fd:6"]);
    assert_eq!(config.aperture, IovaRange::ALL);
}

#[test]
fn vfio_user_endpoints_leave_the_whole_space_as_the_aperture_and_are_none_of_table_mode() {
    let endpoint = "--endpoint=1,vfio-user=f,server=s,dma=message";
    assert_eq!(config(&["--fd=3", endpoint]).aperture, IovaRange::ALL);
    let error = refusal(&["--fd=3", "--mode=table", endpoint]);
    assert!(error.starts_with("--endpoint 1: in table mode hardware walks the guest's tables, "), "{error}");
    let error = refusal(&["--fd=3", endpoint, "--endpoint=2,vfio-user=g,server=./s"]);
    assert!(error.starts_with("--endpoint 2: the socket ./s is taken already by 1; "), "{error}");
}

#[test]
fn page_sizes_above_the_granule_are_announced_with_it() {
    for (granule, mask) in
        [("4k", 0x4020_1000), ("64k", 0x4021_0000), ("2M", 0x4020_0000), ("1G", 0x4000_0000)]
    {
        assert_eq!(config(&["--fd=3", "--granule", granule]).page_size_mask, mask, "{granule}");
    }
}

#[test]
fn guest_memory_gives_the_aperture_and_the_doorbell_of_its_machine() {
    let q35 = config(&["--fd=3", "--guest-memory", "512M", "--endpoint", "1,vhost-user=f,backend=b"]);
    assert_eq!(q35.aperture, range(1 << 20, 0x1fff_ffff));
    assert_eq!(q35.msi_region, Some(X86_MSI_REGION));
    let virt = config(&["--fd=3", "--guest-memory", "512M,machine=virt"]);
    assert_eq!((virt.aperture, virt.msi_region), (range(1 << 30, 0x5fff_ffff), None));
    let given = config(&["--fd=3", "--guest-memory", "512M,machine=virt", "--msi-region", "0-0xfff"]);
    assert_eq!(given.msi_region, Some(range(0, 0xfff)));
}

#[test]
fn the_command_line_wins_over_the_file_and_endpoints_add_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vm.toml");
    let text = "socket-path = 'file.sock'\nguest-memory = '1G'\ngranule = '64k'\nboot-bypass = false\n\
                endpoint = ['00:02.0', '00:03.0']\nmax-faults = 5\n";
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8");

    let file_alone = config(&["--config", path]);
    assert_eq!(file_alone.listen, Listen::Path("file.sock".into()));
    assert_eq!(file_alone.aperture, range(1 << 20, 0x3fff_ffff));
    assert_eq!((file_alone.page_size_mask, file_alone.boot_bypass), (0x4021_0000, false));

    let both =
        config(&["--fd=3", "--config", path, "--granule=4k", "--aperture=0-0xfff", "--endpoint=00:04.0"]);
    let labels: Vec<_> = both.endpoints.iter().map(|endpoint| endpoint.label.as_str()).collect();
    assert_eq!(labels, ["00:02.0", "00:03.0", "00:04.0"]);
    assert_eq!(both.listen, Listen::Fd(3));
    assert_eq!(both.aperture, range(0, 0xfff));
    assert_eq!((both.page_size_mask, both.boot_bypass, both.limits.faults_max), (0x4020_1000, false, 5));
}

#[test]
fn a_socket_path_is_kept_as_it_is_given() {
    let config = config(&["--socket-path", "./a b/../iommu.sock"]);
    assert_eq!(config.listen, Listen::Path(Path::new("./a b/../iommu.sock").to_owned()));
}
