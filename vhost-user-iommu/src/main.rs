// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The `vhost-user-iommu` program: from the command line to what was asked for.
//!
//! Exits with status 0 when that is done, 2 when it cannot be done as asked, 1 when it failed; `launch` with that of a
//! daemon that refused.

use std::{env, fmt::Display, process::ExitCode};

use vhost_user_iommu::{Command, CtlError, LaunchError, parse, print_capabilities, run};

fn main() -> ExitCode {
    match parse(env::args_os()) {
        Ok(Command::PrintCapabilities) => exit(print_capabilities(), FAILURE),
        Ok(Command::Viot(viot)) => exit(viot.run(), USAGE),
        Ok(Command::Ctl(ctl)) => {
            let result = ctl.run();
            let status = if matches!(result, Err(CtlError::Refused(_))) { USAGE } else { FAILURE };
            exit(result, status)
        }
        Ok(Command::Launch(launch)) => {
            let result = launch.run();
            let status = result.as_ref().err().map_or(0, LaunchError::exit_status);
            exit(result, status)
        }
        Ok(Command::Serve(config)) => exit(run(&config), USAGE),
        Err(error) => exit(Err(error), USAGE),
    }
}

fn exit(result: Result<(), impl Display>, status: u8) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-iommu: {error}");
            ExitCode::from(status)
        }
    }
}

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
