//! TCP reassembly: segments as they passed the packet hooks, in; each direction's bytes in order, out.
