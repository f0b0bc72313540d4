//! What serving earns: tokens per joule and a price, to dollars per megawatt-hour.

use crate::quantity::{JOULES_PER_MWH, TokensPerJoule, UsdPerMwh};

/// Revenue of a megawatt-hour spent on tokens that all sell at this price.
pub fn revenue(efficiency: TokensPerJoule, usd_per_million_tokens: f64) -> UsdPerMwh {
    UsdPerMwh(efficiency.0 * JOULES_PER_MWH * usd_per_million_tokens / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_row_is_reproduced() {
        // 22.5 and 19.7 token/J at $0.138 per million tokens: $11,178 and $9,787 per MWh of the GPU.
        assert!((revenue(TokensPerJoule(22.5), 0.138).0 - 11_178.0).abs() < 1.0);
        assert!((revenue(TokensPerJoule(19.7), 0.138).0 - 9_787.0).abs() < 1.0);
    }
}
