// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host's kernel says from a moment on: the SMMU's driver names each access that it refuses, as long as they
//! are not too many.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::Result;
use rustix::fs::{Mode, OFlags, open};

pub struct KernelLog {
    records: File,
    text: String,
}

impl KernelLog {
    /// From now on.
    pub fn from_now() -> Result<KernelLog> {
        let mut records = File::from(open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
        records.seek(SeekFrom::End(0))?;
        Ok(KernelLog { records, text: String::new() })
    }

    /// Whether some line so far has all of these words.
    pub fn says(&mut self, words: &[&str]) -> bool {
        // Each read is of one record; the end of them is an error.
        let mut record = [0; 1024];
        while let Ok(length) = self.records.read(&mut record) {
            self.text += &String::from_utf8_lossy(&record[..length]);
        }
        self.text.lines().any(|line| words.iter().all(|word| line.contains(word)))
    }
}
