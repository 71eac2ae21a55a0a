// SPDX-License-Identifier: MIT OR Apache-2.0
//! FEAT_PAuth: the five keys, by encoding, for the names need the extension in the assembler.
//!
//! EL2 itself signs no pointers, so that a key in the wrong world never matters to it.

use crate::features::Has;

macro_rules! key_registers {
    ($($field:ident = $register:literal),+ $(,)?) => {
        /// A copy of the pointer authentication keys.
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(super) struct Keys { $($field: u64,)+ }

        impl Keys {
            pub(super) const fn new() -> Self {
                Self { $($field: 0,)+ }
            }

            /// Copies the keys of this CPU, where it has any.
            pub(super) fn save(&mut self, ids: Has) {
                if ids.has_pointer_auth() {
                    *self = Self { $($field: read_sysreg!($register)),+ };
                }
            }

            /// Loads them. An ISB or an exception return must follow before they are used.
            pub(super) fn load(&self, ids: Has) {
                if ids.has_pointer_auth() {
                    let Self { $($field),+ } = *self;
                    $(write_sysreg!($register, $field);)+
                }
            }
        }
    };
}

key_registers! {
    instruction_a_low = "s3_0_c2_c1_0", instruction_a_high = "s3_0_c2_c1_1", instruction_b_low = "s3_0_c2_c1_2",
    instruction_b_high = "s3_0_c2_c1_3",
    data_a_low = "s3_0_c2_c2_0", data_a_high = "s3_0_c2_c2_1", data_b_low = "s3_0_c2_c2_2",
    data_b_high = "s3_0_c2_c2_3", generic_low = "s3_0_c2_c3_0", generic_high = "s3_0_c2_c3_1",
}
