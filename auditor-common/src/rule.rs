//! The rule table and the verdict: how a destination is decided, in the kernel and in the daemon alike.
//!
//! The kernel finds rules by longest prefix in one table, twice: for the exact port and for any port ([`ANY_PORT`]).
//! [`decide`] weighs what was found. It is the only place where a decision about a destination is made; the daemon's
//! `policy test` calls the same function.
//!
//! Precedence: the longer address prefix wins; at the same length the exact port wins over any port. A rule that has
//! expired denies until the daemon has taken it out, so that expiry needs no daemon and never widens access.

/// The port of a rule that holds for every port.
pub const ANY_PORT: u16 = 0;

/// Let it pass.
pub const ACTION_ALLOW: u32 = 1;
/// Refuse it with EPERM.
pub const ACTION_DENY: u32 = 2;

/// The rule number of a verdict that no rule gave (the policy's default, or no session).
pub const NO_RULE: u32 = u32::MAX;

/// A rule gave the verdict.
pub const REASON_RULE: u8 = 1;
/// No rule matched: the policy's default.
pub const REASON_DEFAULT: u8 = 2;
/// The rule that matched has expired.
pub const REASON_EXPIRED: u8 = 3;
/// The socket belongs to an audited cgroup, but to no session that is known.
pub const REASON_NO_SESSION: u8 = 4;
/// The socket's type or protocol is not one that can be audited.
pub const REASON_SOCKET_TYPE: u8 = 5;
/// A packet that could not be parsed as what its socket speaks.
pub const REASON_MALFORMED: u8 = 6;

/// A segment with the urgent flag: receivers take urgent bytes out of the stream, so that what the application reads is not
/// what was sent.
pub const REASON_URGENT: u8 = 7;

/// The daemon is gone or hangs.
pub const REASON_LEASE: u8 = 8;

/// A rule allows the path of a unix socket, but the caller has another root directory or user namespace: there the path may lead
/// elsewhere.
pub const REASON_OTHER_ROOT: u8 = 20;

/// The name of a unix socket could not be read.
pub const REASON_UNREADABLE_NAME: u8 = 21;

/// Bits of [`RuleKey`] that precede the address: table, transport, padding and port.
pub const KEY_PREFIX_BITS: u32 = 64;

/// Key of the rule table, without the prefix length that a longest-prefix table keeps beside it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RuleKey {
    table: [u8; 4],
    transport: u8,
    _padding: u8,
    port: [u8; 2],
    address: [u8; 16],
}
crate::assert_layout!(RuleKey, size = 24, align = 1);

impl RuleKey {
    /// `table`: the compiled policy; `transport`: IP protocol number (6 TCP, 17 UDP); `port`: host byte order;
    /// `address`: canonical, see [`crate::endpoint::Endpoint`].
    #[inline(always)]
    pub const fn new(table: u32, transport: u8, port: u16, address: [u8; 16]) -> Self {
        Self { table: table.to_be_bytes(), transport, _padding: 0, port: port.to_be_bytes(), address }
    }

    /// The compiled policy that this entry belongs to.
    pub const fn table(&self) -> u32 {
        u32::from_be_bytes(self.table)
    }

    /// IP protocol number.
    pub const fn transport(&self) -> u8 {
        self.transport
    }

    /// Port in host byte order, [`ANY_PORT`] for all.
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// Canonical address.
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }
}

/// Value of the rule table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RuleValue {
    /// [`ACTION_ALLOW`] or [`ACTION_DENY`]; anything else denies.
    pub action: u32,
    /// Number of the rule within its policy, in the order of the file.
    pub rule: u32,
    /// Length of the address prefix in the canonical form, 0 to 128.
    pub prefix: u32,
    /// Padding.
    pub _padding: u32,
    /// End of validity in nanoseconds of CLOCK_BOOTTIME; 0: none.
    pub expires: u64,
}
crate::assert_layout!(RuleValue, size = 24, align = 8);

/// What was decided, by what, and until when it holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// [`ACTION_ALLOW`] or [`ACTION_DENY`].
    pub action: u32,
    /// The rule, or [`NO_RULE`].
    pub rule: u32,
    /// End of validity in nanoseconds of CLOCK_BOOTTIME; 0: none.
    pub expires: u64,
    /// One of the `REASON_*` constants.
    pub reason: u8,
    /// Padding.
    pub _padding: [u8; 7],
}
crate::assert_layout!(Verdict, size = 24, align = 8);

impl Verdict {
    /// A refusal that no rule gave.
    #[inline(always)]
    pub const fn refuse(reason: u8) -> Self {
        Self { action: ACTION_DENY, rule: NO_RULE, expires: 0, reason, _padding: [0; 7] }
    }

    /// Whether the traffic may pass.
    #[inline(always)]
    pub const fn allows(&self) -> bool {
        self.action == ACTION_ALLOW
    }
}

/// Weighs the longest-prefix match for the exact port against the one for any port.
///
/// `default_action`: the policy's; anything but [`ACTION_ALLOW`] denies. `now`: CLOCK_BOOTTIME in nanoseconds.
#[inline(always)]
pub fn decide(exact: Option<&RuleValue>, any: Option<&RuleValue>, default_action: u32, now: u64) -> Verdict {
    let winner = match (exact, any) {
        (Some(exact), Some(any)) if any.prefix > exact.prefix => any,
        (Some(exact), _) => exact,
        (None, Some(any)) => any,
        (None, None) => {
            let action = if default_action == ACTION_ALLOW { ACTION_ALLOW } else { ACTION_DENY };
            return Verdict { action, rule: NO_RULE, expires: 0, reason: REASON_DEFAULT, _padding: [0; 7] };
        }
    };
    if winner.expires != 0 && winner.expires <= now {
        return Verdict {
            action: ACTION_DENY,
            rule: winner.rule,
            expires: 0,
            reason: REASON_EXPIRED,
            _padding: [0; 7],
        };
    }
    let action = if winner.action == ACTION_ALLOW { ACTION_ALLOW } else { ACTION_DENY };
    Verdict { action, rule: winner.rule, expires: winner.expires, reason: REASON_RULE, _padding: [0; 7] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(action: u32, rule: u32, prefix: u32) -> RuleValue {
        RuleValue { action, rule, prefix, _padding: 0, expires: 0 }
    }

    #[test]
    fn nothing_found_is_the_default_and_the_default_denies() {
        assert_eq!(decide(None, None, ACTION_DENY, 0).action, ACTION_DENY);
        assert_eq!(decide(None, None, 0, 0).action, ACTION_DENY);
        assert_eq!(decide(None, None, ACTION_ALLOW, 0).action, ACTION_ALLOW);
        assert_eq!(decide(None, None, ACTION_ALLOW, 0).rule, NO_RULE);
    }

    #[test]
    fn the_longer_prefix_wins_then_the_exact_port() {
        let host = rule(ACTION_DENY, 1, 128);
        let network = rule(ACTION_ALLOW, 2, 112);
        assert_eq!(decide(Some(&network), Some(&host), ACTION_ALLOW, 0).rule, 1);
        assert_eq!(decide(Some(&host), Some(&network), ACTION_ALLOW, 0).rule, 1);
        let same = rule(ACTION_ALLOW, 3, 128);
        assert_eq!(decide(Some(&same), Some(&host), ACTION_DENY, 0).rule, 3);
    }

    #[test]
    fn an_expired_rule_denies_whatever_the_default() {
        let expired = RuleValue { expires: 10, ..rule(ACTION_ALLOW, 4, 128) };
        assert!(decide(Some(&expired), None, ACTION_ALLOW, 9).allows());
        let late = decide(Some(&expired), None, ACTION_ALLOW, 10);
        assert_eq!((late.action, late.reason, late.rule), (ACTION_DENY, REASON_EXPIRED, 4));
    }

    #[test]
    fn an_unknown_action_denies() {
        assert!(!decide(Some(&rule(77, 0, 128)), None, ACTION_ALLOW, 0).allows());
    }
}
