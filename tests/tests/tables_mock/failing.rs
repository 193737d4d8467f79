// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has calls fail that a thread of the daemon makes in the kernel: at the first point where the kernel can fail, or the
//! second, or any other.
//!
//! To read: `Documentation/fault-injection/fault-injection.rst`, "Systematic faults" (`fail-nth`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::io::{pread, pwrite};

/// The points of one thread.
pub struct Failing {
    file: File,
    folder: PathBuf,
}

impl Failing {
    /// Of the thread with this number.
    pub fn thread(number: &str) -> Failing {
        prepare();
        // Open all the time: to open it could fail as well.
        let folder = Path::new("/proc/self/task").join(number);
        let file = File::options().read(true).write(true).open(folder.join("fail-nth"));
        Failing { file: file.expect("a kernel with fault injection"), folder }
    }

    /// Lets all fail that can; the kernel tries some things twice.
    pub fn all<T>(&self, act: impl FnOnce() -> T) -> T {
        let of_thread = |value: &str| fs::write(self.folder.join("make-it-fail"), value).expect("it is set");
        for (file, value) in [("task-filter", "Y"), ("times", "-1"), ("probability", "100")] {
            set(&format!("/sys/kernel/debug/failslab/{file}"), value);
        }
        of_thread("1");
        let result = act();
        of_thread("0");
        set("/sys/kernel/debug/failslab/probability", "0");
        set("/sys/kernel/debug/failslab/task-filter", "N");
        result
    }

    /// Lets the kernel fail where it can for the `nth` time, and says whether it has got there.
    pub fn at<T>(&mut self, nth: u32, act: impl FnOnce() -> T) -> (T, bool) {
        pwrite(&self.file, nth.to_string().as_bytes(), 0).expect("it is set");
        let result = act();
        let mut left = [0; 1];
        pread(&self.file, &mut left, 0).expect("it is told");
        pwrite(&self.file, b"0", 0).expect("it ends");
        // Zero once it has failed.
        (result, left == *b"0")
    }
}

/// What fails is what iommufd and the mock driver allocate, and the mock's own points. A program that runs out of memory
/// dies, so what it gets its memory by is left alone.
fn prepare() {
    for (file, value) in
        [("failslab/ignore-gfp-wait", "N"), ("failslab/cache-filter", "Y"), ("fail_iommufd/task-filter", "N")]
    {
        set(&format!("/sys/kernel/debug/{file}"), value);
    }
    for cache in fs::read_dir("/sys/kernel/slab").expect("caches") {
        let name = cache.expect("a cache").file_name().into_string().expect("a name");
        if name.starts_with("kmalloc-") || name == "radix_tree_node" {
            set(&format!("/sys/kernel/slab/{name}/failslab"), "1");
        }
    }
}

fn set(file: &str, value: &str) {
    fs::write(file, value).unwrap_or_else(|error| panic!("{file}: {error}"));
}
