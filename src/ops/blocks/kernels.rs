//! The names of the kernels of `ops/cuda/blocks.cu`.

use super::Format;

impl Format {
    /// As kernels' names spell it: [`Format::name`] in small letters.
    const fn kernels(self) -> &'static [&'static str; 5] {
        macro_rules! of {
            ($($format:ident = $name:literal),*) => {
                match self {
                    $(Format::$format => &[
                        concat!("gemv_", $name, "_1"),
                        concat!("gemv_", $name, "_8"),
                        concat!("dequantise_", $name),
                        concat!("gather_", $name),
                        concat!("grouped_gemv_", $name),
                    ],)*
                }
            };
        }
        of!(
            Q4_0 = "q4_0",
            Q4_1 = "q4_1",
            Q5_0 = "q5_0",
            Q5_1 = "q5_1",
            Q8_0 = "q8_0",
            Q2K = "q2_k",
            Q3K = "q3_k",
            Q4K = "q4_k",
            Q5K = "q5_k",
            Q6K = "q6_k"
        )
    }

    /// The kernel of products of so many rows, up to eight.
    pub const fn gemv_kernel(self, rows: usize) -> &'static str {
        self.kernels()[if rows == 1 { 0 } else { 1 }]
    }

    pub const fn dequantise_kernel(self) -> &'static str {
        self.kernels()[2]
    }

    pub const fn gather_kernel(self) -> &'static str {
        self.kernels()[3]
    }

    /// The kernel of products of each expert's rows.
    pub const fn grouped_kernel(self) -> &'static str {
        self.kernels()[4]
    }
}
