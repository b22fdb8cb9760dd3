#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_common::fuzzing::fuzz_posture(bytes));
