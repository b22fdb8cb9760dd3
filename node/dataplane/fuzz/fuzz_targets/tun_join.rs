#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_dataplane::packet::fuzzing::fuzz_join(bytes));
