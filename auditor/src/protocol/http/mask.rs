//! Secrets in URLs, taken out before anything is kept.
//!
//! The bias is towards masking: a page token that is not shown harms nobody, a signature that is shown opens a bucket. By the
//! name of a query's parameter, in any case, in camel case or not, percent-encoded or not; by the look of a value (JWT, the
//! prefixes that vendors give their keys); the user information of a URL, wherever there is one; and in a few paths that are
//! known to be credentials (bots' and webhooks'). A secret that has neither a telling name nor a telling look is not known for
//! one: it is recorded.

/// What stands for a secret.
const MASK: &[u8] = b"***";
/// Different names of what was masked that are told of one request.
const MOST_TOLD: usize = 16;
/// A parameter's name is told up to here.
const LONGEST_TOLD: usize = 32;

/// Parameters with these names, letters and digits only.
const NAMES: [&str; 23] = [
    "key",
    "sig",
    "code",
    "auth",
    "authorization",
    "pass",
    "passphrase",
    "pwd",
    "pw",
    "jwt",
    "sid",
    "session",
    "sessionid",
    "otp",
    "pin",
    "ticket",
    "assertion",
    "samlresponse",
    "samlrequest",
    "clientassertion",
    "hmac",
    "credentials",
    "creds",
];
/// And those whose names end so.
const NAME_ENDS: [&str; 16] = [
    "token",
    "secret",
    "password",
    "passwd",
    "signature",
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "subscriptionkey",
    "accesskeyid",
    "credential",
    "authkey",
    "sharedkey",
    "authcode",
    "keyid",
];
/// How keys of well-known vendors begin.
const PREFIXES: [&str; 21] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xoxe-",
    "xapp-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "pypi-",
    "npm_",
    "AKIA",
    "ASIA",
    "AIza",
    "hvs.",
];

/// What was masked.
pub(super) fn told(masked: &mut Vec<String>, kind: &str, name: &str) {
    let name = &name[..name.floor_char_boundary(LONGEST_TOLD)];
    let told = format!("{kind}:{name}");
    if masked.len() < MOST_TOLD && !masked.contains(&told) {
        masked.push(told);
    }
}

/// A path with its query.
pub(super) fn target(target: &[u8], masked: &mut Vec<String>) -> Vec<u8> {
    let mut out = Vec::with_capacity(target.len());
    let path = target.iter().position(|byte| matches!(byte, b'?' | b'#' | b';')).unwrap_or(target.len());
    path_into(&target[..path], masked, &mut out);
    for piece in target[path..].split_inclusive(|byte| matches!(byte, b'?' | b'&' | b';' | b'#')) {
        let (body, end) = match piece {
            [body @ .., end @ (b'?' | b'&' | b';' | b'#')] => (body, Some(*end)),
            body => (body, None),
        };
        parameter_into(body, masked, &mut out);
        out.extend(end);
    }
    out
}

/// Host and port; what stands before an `@` is not theirs.
pub(super) fn authority<'a>(authority: &'a [u8], masked: &mut Vec<String>) -> &'a [u8] {
    match authority.iter().rposition(|byte| *byte == b'@') {
        Some(place) => {
            told(masked, "url", "userinfo");
            &authority[place + 1..]
        }
        None => authority,
    }
}

fn path_into(path: &[u8], masked: &mut Vec<String>, out: &mut Vec<u8>) {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    for (index, segment) in segments.iter().enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        // A URL within the path: `http:`, nothing, and what is before its path.
        let within = index >= 2 && segments[index - 1].is_empty() && segments[index - 2].ends_with(b":");
        if within && segment.contains(&b'@') {
            out.extend_from_slice(MASK);
            out.push(b'@');
            out.extend_from_slice(authority(segment, masked));
        } else if let Some(kept) = secret_segment(&segments, index) {
            told(masked, "path", "token");
            out.extend_from_slice(&segment[..kept]);
            out.extend_from_slice(MASK);
        } else if holds_userinfo(&decoded(segment)) {
            told(masked, "url", "userinfo");
            out.extend_from_slice(MASK);
        } else {
            out.extend_from_slice(segment);
        }
    }
}

/// Whether this segment of a path is a credential: how many of its bytes are none.
fn secret_segment(segments: &[&[u8]], index: usize) -> Option<usize> {
    let segment = segments[index];
    let before = |back: usize| index.checked_sub(back).map(|index| segments[index]);
    let numbers = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    // Telegram: /bot<number>:<secret>/method
    if let Some((number, secret)) = segment
        .strip_prefix(b"bot")
        .and_then(|rest| rest.split_at_checked(rest.iter().position(|b| *b == b':')?))
        && numbers(number)
        && secret.len() > 1
    {
        return Some(3);
    }
    // Slack: /services/T…/B…/<secret>
    let slack = before(3) == Some(b"services")
        && before(2).is_some_and(|team| team.starts_with(b"T"))
        && before(1).is_some_and(|hook| hook.starts_with(b"B"));
    // Discord: /webhooks/<number>/<secret>
    let discord = before(2) == Some(b"webhooks") && before(1).is_some_and(numbers);
    ((slack || discord) && !segment.is_empty() || looks_secret(&decoded(segment))).then_some(0)
}

fn parameter_into(parameter: &[u8], masked: &mut Vec<String>, out: &mut Vec<u8>) {
    let equals = parameter.iter().position(|byte| *byte == b'=');
    let (name, value) =
        equals.map_or((&[][..], parameter), |place| (&parameter[..place], &parameter[place + 1..]));
    let name_text = decoded(name);
    let kind = if value.is_empty() {
        None
    } else if !name.is_empty() && names_secret(&name_text) {
        Some(("query", true))
    } else {
        let value = decoded(value);
        if looks_secret(&value) {
            Some(("query", true))
        } else if holds_userinfo(&value) {
            Some(("url", false))
        } else {
            None
        }
    };
    if equals.is_some() {
        out.extend_from_slice(name);
        out.push(b'=');
    }
    match kind {
        None => return out.extend_from_slice(value),
        Some((kind, true)) => told(masked, kind, &String::from_utf8_lossy(&name_text)),
        Some((kind, false)) => told(masked, kind, "userinfo"),
    }
    out.extend_from_slice(MASK);
}

fn names_secret(name: &[u8]) -> bool {
    let plain: String = name
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    // `filter[key]` and `x.y.key`: the last word by itself, too.
    let last: String = name
        .rsplit(|byte| matches!(byte, b'[' | b']' | b'.'))
        .find(|word| !word.is_empty())
        .map(|word| word.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
        .unwrap_or_default();
    NAMES.contains(&&*plain) || NAMES.contains(&&*last) || NAME_ENDS.iter().any(|end| plain.ends_with(end))
}

fn looks_secret(value: &[u8]) -> bool {
    let jwt = value.starts_with(b"eyJ") && value.iter().filter(|byte| **byte == b'.').count() >= 2;
    let bearer = value.get(..7).is_some_and(|head| head.eq_ignore_ascii_case(b"bearer "));
    jwt || bearer
        || value.len() >= 16 && PREFIXES.iter().any(|prefix| value.starts_with(prefix.as_bytes()))
        || memchr::memmem::find(value, b"PRIVATE KEY-----").is_some()
}

/// A URL with somebody's name and password before its host.
fn holds_userinfo(value: &[u8]) -> bool {
    memchr::memmem::find_iter(value, b"://").any(|place| {
        let rest = &value[place + 3..];
        let end =
            rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#' | b' ')).unwrap_or(rest.len());
        rest[..end].contains(&b'@')
    })
}

/// Without percent-encoding, applied twice: a URL in a parameter may be encoded again.
fn decoded(text: &[u8]) -> Vec<u8> {
    let once = |text: &[u8]| percent_encoding::percent_decode(text).collect::<Vec<u8>>();
    if text.contains(&b'%') { once(&once(text)) } else { text.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> (String, Vec<String>) {
        let mut told = Vec::new();
        let out = target(text.as_bytes(), &mut told);
        (String::from_utf8(out).unwrap(), told)
    }

    #[test]
    fn secrets_in_queries_are_masked_by_name_and_by_look() {
        for (text, expected, told) in [
            ("/a?x=1&token=abc&y=2", "/a?x=1&token=***&y=2", "query:token"),
            (
                "/a?X-Amz-Signature=00ff&X-Amz-Date=1",
                "/a?X-Amz-Signature=***&X-Amz-Date=1",
                "query:X-Amz-Signature",
            ),
            ("/a?accessToken=abc", "/a?accessToken=***", "query:accessToken"),
            ("/a?%74oken=abc", "/a?%74oken=***", "query:token"),
            ("/a;password=x;b=1", "/a;password=***;b=1", "query:password"),
            ("/a?p=1;PASSWORD=x;b=1", "/a?p=1;PASSWORD=***;b=1", "query:PASSWORD"),
            ("/cb?code=4/0A&state=s#access_token=z", "/cb?code=***&state=s#access_token=***", "query:code"),
            ("/a?user[password]=x", "/a?user[password]=***", "query:user[password]"),
            ("/a?q=eyJh.eyJz.c2ln", "/a?q=***", "query:q"),
            ("/a?q=ghp_0123456789abcdef", "/a?q=***", "query:q"),
            ("/a?next=https%3A%2F%2Fu%3Ap%40h%2F", "/a?next=***", "url:userinfo"),
            ("/a?next=https%253A%252F%252Fu%253Ap%2540h%252F", "/a?next=***", "url:userinfo"),
            ("/fetch/http://u:p@h/x", "/fetch/http://***@h/x", "url:userinfo"),
            ("/bot12:AAbb/sendMessage", "/bot***/sendMessage", "path:token"),
            ("/services/T0/B0/XyZ", "/services/T0/B0/***", "path:token"),
            ("/api/webhooks/12/tok", "/api/webhooks/12/***", "path:token"),
            ("/a?sk-ant-0123456789012345", "/a?***", "query:"),
        ] {
            let (out, names) = masked(text);
            assert_eq!(out, expected, "{text}");
            assert_eq!(names.first().map_or("", String::as_str), told, "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays_byte_for_byte() {
        for text in [
            "/",
            "*",
            "/a/b?x=1&y=%20&&=&z",
            "/a?monkey=1&keyword=k&sort_key=2&decode=1&tokens=5",
            "/v1/containers/json?all=1",
            "/a?token=&key=",
            "/botany/x:y",
            "/mail@example.com/x",
            "",
            "/a?b?c#d",
        ] {
            assert_eq!(masked(text), (text.to_owned(), Vec::new()), "{text}");
        }
    }

    #[test]
    fn an_authority_is_without_its_user() {
        let mut told = Vec::new();
        assert_eq!(authority(b"u:p@ss@h:1", &mut told), b"h:1");
        assert_eq!(told, ["url:userinfo"]);
    }
}
