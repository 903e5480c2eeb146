//! Which fields of a head matter, and which are secrets.
//!
//! A field is told by its name as soon as that is read, and of its value only what can be of use is ever kept: of most
//! fields nothing. That a credential was there is remembered; what it was is not, not even in HTTP/2's table of fields.

/// A field by what it means here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Field {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:authority`
    Authority,
    /// `:path`
    Path,
    /// `:protocol` (RFC 8441).
    Protocol,
    /// `:status`
    Status,
    ApiVersion,
    ContentLength,
    ContentType,
    GrpcMessage,
    GrpcStatus,
    Host,
    Server,
    TransferEncoding,
    Upgrade,
    UserAgent,
    /// A credential: its place in [`SECRETS`].
    Secret(u8),
    Other,
}

/// Names of fields that carry credentials. The last one stands for all that have no place of their own.
pub(super) const SECRETS: [&str; 28] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "cookie2",
    "set-cookie2",
    "x-api-key",
    "api-key",
    "apikey",
    "x-auth-token",
    "x-auth-key",
    "x-access-token",
    "x-amz-security-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-vault-token",
    "x-registry-auth",
    "x-registry-config",
    "x-csrf-token",
    "x-xsrf-token",
    "x-subject-token",
    "private-token",
    "job-token",
    "ocp-apim-subscription-key",
    "x-functions-key",
    "dpop",
    "authentication-info",
    "other credential",
];

/// Ends of names that nobody would give to anything but a credential.
const SECRET_ENDS: [&str; 11] = [
    "authorization",
    "-token",
    "_token",
    "-secret",
    "_secret",
    "-password",
    "api-key",
    "api_key",
    "apikey",
    "access-key",
    "-signature",
];

/// Longer names are none of ours.
const LONGEST_NAME: usize = 64;

impl Field {
    /// The field of this name, in any case. Not those that begin with a colon.
    pub(super) fn of(name: &[u8]) -> Self {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Self::Other;
        }
        let mut lower = [0; LONGEST_NAME];
        let lower = &mut lower[..name.len()];
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        match &*lower {
            b"content-length" => Self::ContentLength,
            b"content-type" => Self::ContentType,
            b"grpc-message" => Self::GrpcMessage,
            b"grpc-status" => Self::GrpcStatus,
            b"host" => Self::Host,
            b"server" => Self::Server,
            b"transfer-encoding" => Self::TransferEncoding,
            b"upgrade" => Self::Upgrade,
            b"user-agent" => Self::UserAgent,
            b"api-version" => Self::ApiVersion,
            name => secret(name).map_or(Self::Other, Self::Secret),
        }
    }

    /// The same with HTTP/2's own.
    pub(super) fn of_two(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            b":status" => Self::Status,
            name => Self::of(name),
        }
    }

    /// How much of its value is of use; `long` for a path.
    pub(super) const fn keeps(self, long: usize) -> usize {
        match self {
            Self::Path => long,
            Self::UserAgent | Self::GrpcMessage => 512,
            Self::Authority | Self::Host | Self::ContentType => 256,
            Self::Method
            | Self::Scheme
            | Self::Protocol
            | Self::Status
            | Self::ContentLength
            | Self::GrpcStatus
            | Self::Server
            | Self::TransferEncoding
            | Self::Upgrade => 64,
            Self::ApiVersion | Self::Secret(_) | Self::Other => 0,
        }
    }
}

fn secret(name: &[u8]) -> Option<u8> {
    let known = SECRETS.iter().position(|secret| secret.as_bytes() == name);
    let last = SECRETS.len() - 1;
    known
        .or_else(|| SECRET_ENDS.iter().any(|end| name.ends_with(end.as_bytes())).then_some(last))
        .and_then(|place| u8::try_from(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_told_in_any_case_and_nothing_of_them_is_kept() {
        for name in ["Authorization", "COOKIE", "x-Api-Key", "X-My-Company-Token", "X-Client-Secret", "DPoP"]
        {
            let field = Field::of(name.as_bytes());
            assert!(matches!(field, Field::Secret(_)), "{name}");
            assert_eq!(field.keeps(1 << 20), 0);
        }
        for name in ["accept", "", "etag", "x-token-bucket-size", ":path"] {
            assert_eq!(Field::of(name.as_bytes()), Field::Other, "{name}");
        }
        assert_eq!(Field::of_two(b":path"), Field::Path);
    }
}
