// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A folder for everything that a launch may leave behind, and the launch itself.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use viommu_tests::daemon::Daemon;

/// Longest wait for anything that has to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The script of a VMM that says that it runs, and runs until its standard input ends.
pub const RUNNING: &str = "echo running; read line";

pub struct Scene {
    folder: TempDir,
}

/// A launch, or the VMM that it has become.
pub struct Launched {
    process: Child,
    stdout: BufReader<ChildStdout>,
    stdin: Option<ChildStdin>,
}

/// A pipe that is full, as standard error: the daemon says that it is ready before it is.
pub struct Obstacle {
    said: PipeReader,
}

impl Scene {
    pub fn new() -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("tmp")).expect("a folder");
        Scene { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A launch of a daemon that has one endpoint, with the VMM `script`.
    pub fn launch(&self, options: &[&str], script: &str) -> Command {
        let own = ["launch", "--socket-path", "iommu.sock", "--endpoint", "00:02.0"];
        let mut command = self.program();
        command.args(own).args(options).args(["--", "sh", "-c", script]);
        command
    }

    /// The program, in the folder of the scene and in a process group of its own.
    pub fn program(&self) -> Command {
        self.at_home(Command::new(Daemon::program().expect("built")))
    }

    /// The same program and arguments after a line of shell, whose standard input is `stdin`.
    pub fn through_shell(&self, line: &str, command: &Command, stdin: impl Into<OwnedFd>) -> Command {
        let mut shell = self.at_home(Command::new("sh"));
        shell.args(["-c", line, "sh"]).arg(command.get_program()).args(command.get_args());
        shell.stdin(stdin.into());
        shell
    }

    /// Neither the daemon's socket nor what the launch needed is left.
    pub fn assert_nothing_left(&self) {
        assert!(!self.path("iommu.sock").exists());
        let left: Vec<_> = fs::read_dir(self.path("tmp")).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn at_home(&self, mut command: Command) -> Command {
        command.current_dir(self.folder.path()).env("TMPDIR", self.path("tmp")).env_remove("NOTIFY_SOCKET");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }
}

impl Obstacle {
    /// Keeps the daemon that `command` starts from being ready.
    pub fn before(command: &mut Command) -> Obstacle {
        let (said, mut stderr) = pipe().expect("a pipe");
        fcntl_setfl(&stderr, OFlags::NONBLOCK).expect("a pipe's flag");
        while stderr.write(b"\n").is_ok() {}
        fcntl_setfl(&stderr, OFlags::empty()).expect("a pipe's flag");
        command.stderr(stderr);
        Obstacle { said }
    }

    /// Lets it; what is said until nobody can say anything any more.
    pub fn clear(mut self) -> String {
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("UTF-8");
        said
    }
}

impl Launched {
    pub fn start(command: &mut Command) -> Launched {
        let mut process = command.spawn().expect("the program starts");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let stdin = process.stdin.take();
        Launched { process, stdout, stdin }
    }

    /// The next line that the VMM says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it is piped");
        line.trim_end().to_owned()
    }

    /// Sends a signal as a terminal does, to all its process group.
    pub fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// Its one child, the daemon, as soon as there is one.
    pub fn daemon(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let read = fs::read_to_string(&children).unwrap_or_default();
            if let Some(child) = read.split_whitespace().next() {
                return child.parse().expect("a process id");
            }
            assert!(Instant::now() < deadline, "no daemon is started");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of the VMM alone.
    pub fn wait(&mut self) {
        drop(self.stdin.take());
        self.process.wait().expect("it ends");
    }

    /// Its status, and what is said until nobody holds standard output and error any more, the daemon included.
    pub fn end(mut self) -> Output {
        drop(self.stdin.take());
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).expect("UTF-8");
        let mut output = self.process.wait_with_output().expect("it ends");
        output.stdout = stdout.into();
        output
    }
}

/// Runs it to its end, and that of the daemon.
pub fn run(command: &mut Command) -> Output {
    Launched::start(command).end()
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}
