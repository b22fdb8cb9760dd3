//! Between memory and registers: the only accesses through pointers, each bounded by the type of a reference.
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_storeu_si512,
};

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_u64(words: &[u64; 8]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes, and the load asks for no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Loads the first 64 of `bytes`, or all of them with zeros behind.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_part(bytes: &[u8]) -> __m512i {
    // SAFETY: the mask names no byte behind the slice, and what it does not name is not read.
    unsafe { _mm512_maskz_loadu_epi8(mask(bytes.len()), bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(bytes: &mut [u8; 64], value: __m512i) {
    // SAFETY: the reference is to 64 writable bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_u64(words: &mut [u64; 8], value: __m512i) {
    // SAFETY: the reference is to 64 writable bytes, and the store asks for no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), value) }
}

/// Stores the first bytes of `value`, as many as there is room for in `bytes`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn store_part(bytes: &mut [u8], value: __m512i) {
    // SAFETY: the mask names no byte behind the slice, and what it does not name is not written.
    unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), mask(bytes.len()), value) }
}

/// A bit for each of the first `length` bytes of a register.
#[inline]
const fn mask(length: usize) -> u64 {
    if length >= 64 { u64::MAX } else { (1 << length) - 1 }
}
