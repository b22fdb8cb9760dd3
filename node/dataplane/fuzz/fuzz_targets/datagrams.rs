#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_dataplane::pipeline::fuzzing::fuzz_datagrams(bytes));
