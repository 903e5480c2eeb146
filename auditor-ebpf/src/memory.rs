//! The kernel's own memory, at offsets that the daemon takes from this kernel's type information (BTF) and sets before it loads the
//! object.

use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// A number that the daemon has set.
#[inline(always)]
pub(crate) fn setting(place: &'static u32) -> u32 {
    // SAFETY: a static; volatile, because the loader changes what the compiler thinks constant.
    unsafe { read_volatile(place) }
}

/// Reads a value at an offset from a kernel pointer.
#[inline(always)]
pub(crate) fn read<T: Copy + Default>(from: *const u8, offset: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the destination is as long as is said; the helper takes any address and fails where there is no memory.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            from.wrapping_add(offset as usize).cast(),
        )
    };
    (result == 0).then_some(value)
}

/// Reads a pointer at an offset from a kernel pointer. `None`: it could not be read, or is null.
#[inline(always)]
pub(crate) fn follow(from: *const u8, offset: u32) -> Option<*const u8> {
    let address = read::<u64>(from, offset)?;
    (address != 0).then_some(address as *const u8)
}
