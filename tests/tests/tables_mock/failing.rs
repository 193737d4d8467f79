// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has calls fail that a thread of the daemon makes in the kernel: at the first point where the kernel can fail, or the
//! second, or any other.
//!
//! To read: `Documentation/fault-injection/fault-injection.rst`, "Systematic faults" (`fail-nth`).

use std::fs::{self, File};
use std::path::Path;

use rustix::io::{pread, pwrite};

/// The points of one thread.
pub struct Failing {
    file: File,
}

impl Failing {
    /// Of the thread with this number.
    pub fn thread(number: &str) -> Failing {
        prepare();
        // Open all the time: to open it could fail as well.
        let path = Path::new("/proc/self/task").join(number).join("fail-nth");
        let file = File::options().read(true).write(true).open(path).expect("a kernel with fault injection");
        Failing { file }
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
    let set = |file: String, value: &str| {
        fs::write(&file, value).unwrap_or_else(|error| panic!("{file}: {error}"));
    };
    for (file, value) in
        [("failslab/ignore-gfp-wait", "N"), ("failslab/cache-filter", "Y"), ("fail_iommufd/task-filter", "N")]
    {
        set(format!("/sys/kernel/debug/{file}"), value);
    }
    for cache in fs::read_dir("/sys/kernel/slab").expect("caches") {
        let name = cache.expect("a cache").file_name().into_string().expect("a name");
        if name.starts_with("kmalloc-") || name == "radix_tree_node" {
            set(format!("/sys/kernel/slab/{name}/failslab"), "1");
        }
    }
}
