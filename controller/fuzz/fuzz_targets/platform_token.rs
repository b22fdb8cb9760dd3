#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_controller::fuzzing::fuzz_platform_token(bytes));
