//! What the client says of itself: HandshakeResponse, SSLRequest, and COM_CHANGE_USER.
//!
//! Read field by field as it arrives, because in the middle there is what the client proves its identity with: that is stepped
//! over and never kept, not even until its packet is whole.

use super::capability::Capabilities;
use super::field::{self, Number, Skip, Text, Variable};
use crate::protocol::Login;
use crate::statement::COLLATION;

/// Longer than any name of a user, database or plugin.
const NAME_BYTES: usize = 1 << 10;
/// Bytes of connection attributes that are kept; servers take 64 KiB.
const ATTRIBUTE_BYTES: usize = 64 << 10;
/// Attributes whose names say that the value is nobody's business.
const SECRET_WORDS: [&str; 4] = ["password", "passwd", "secret", "token"];

/// A packet that says who the client is.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct LoginReader {
    /// What the server offers.
    offered: Capabilities,
    /// What both can do, once the packet has said it.
    pub(super) shared: Capabilities,
    field: Field,
    fixed: Text,
    byte: Number<1>,
    length: Variable,
    skip: Skip,
    user: Text,
    database: Text,
    plugin: Text,
    attributes: Text,
    /// COM_CHANGE_USER's character set.
    characters: Text,
}

/// The field that is read next.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
enum Field {
    /// Flags, longest packet, character set, and zeros or MariaDB's flags: 32 bytes, in the old protocol 5.
    #[default]
    Fixed,
    User,
    /// The length of what proves its identity.
    ProofLength,
    Proof,
    /// The same up to a zero byte.
    ProofToZero,
    Database,
    /// COM_CHANGE_USER's character set.
    CharacterSet,
    Plugin,
    AttributesLength,
    Attributes,
    Rest,
}

/// What such a packet is.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Said {
    /// The client goes on in TLS.
    Ssl,
    /// Who it is.
    Login(Login),
    /// It ends within a field that must be there.
    Short,
}

/// Whether in the character set of this collation ASCII bytes are always themselves: UTF-8, Latin 1, ASCII and binary.
const fn is_safe(collation: u16) -> bool {
    let bytes = matches!(collation, 5 | 8 | 11 | 15 | 31 | 47..=49 | 63 | 65 | 94);
    bytes || matches!(collation, 33 | 45 | 46 | 76 | 83 | 192..=247 | 255..=323)
}

impl LoginReader {
    /// For HandshakeResponse, to a server that offers this.
    pub(super) fn response(offered: Capabilities) -> Self {
        Self { offered, fixed: Text::new(32), ..Self::named() }
    }

    /// For COM_CHANGE_USER, behind the command's byte.
    pub(super) fn change_user(shared: Capabilities) -> Self {
        Self { shared, field: Field::User, ..Self::named() }
    }

    fn named() -> Self {
        let name = || Text::new(NAME_BYTES);
        Self {
            user: name(),
            database: name(),
            plugin: name(),
            attributes: Text::new(ATTRIBUTE_BYTES),
            characters: Text::new(2),
            ..Self::default()
        }
    }

    fn changes_user(&self) -> bool {
        // No HandshakeResponse is without its fixed fields.
        self.fixed.kept.is_empty()
    }

    /// Bytes kept.
    pub(super) fn memory(&self) -> usize {
        let texts = [&self.fixed, &self.user, &self.database, &self.plugin, &self.attributes];
        texts.iter().map(|text| text.kept.len()).sum()
    }

    /// The next piece of the payload.
    pub(super) fn read(&mut self, input: &mut &[u8]) {
        while !input.is_empty() {
            let next = match self.field {
                Field::Fixed => self.fixed(input).then_some(Field::User),
                Field::User => self.user.read(input).then(|| self.proof()),
                Field::ProofLength if !self.changes_user() && self.long_proof() => {
                    self.length.read(input).map(|length| self.skip(length, Field::Proof))
                }
                Field::ProofLength => self.byte.read(input).map(|length| self.skip(length, Field::Proof)),
                Field::Proof => self.skip.read(input).then_some(Field::Database),
                Field::ProofToZero => Text::default().read(input).then_some(Field::Database),
                Field::Database if !self.has_database() => Some(self.after_database()),
                Field::Database => self.database.read(input).then(|| self.after_database()),
                Field::CharacterSet => {
                    let length = usize::try_from(self.skip.0).unwrap_or(usize::MAX).min(input.len());
                    self.characters.add(&input[..length]);
                    self.skip.read(input).then_some(Field::Plugin)
                }
                Field::Plugin if !self.shared.has(Capabilities::PLUGIN_AUTH) => Some(Field::AttributesLength),
                Field::Plugin => self.plugin.read(input).then_some(Field::AttributesLength),
                Field::AttributesLength if !self.shared.has(Capabilities::CONNECT_ATTRS) => Some(Field::Rest),
                Field::AttributesLength => {
                    self.length.read(input).map(|length| self.skip(length, Field::Attributes))
                }
                Field::Attributes => {
                    let length = usize::try_from(self.skip.0).unwrap_or(usize::MAX).min(input.len());
                    self.attributes.add(&input[..length]);
                    self.skip.read(input).then_some(Field::Rest)
                }
                Field::Rest => {
                    *input = &[];
                    None
                }
            };
            self.field = next.unwrap_or(self.field);
        }
    }

    /// The end of the payload.
    pub(super) fn end(self, encrypted: bool) -> Said {
        if self.shared.has(Capabilities::SSL) && !encrypted {
            return Said::Ssl;
        }
        if matches!(self.field, Field::Fixed | Field::User) {
            return Said::Short;
        }
        let name = |text: &Text| (!text.kept.is_empty()).then(|| field::text(&text.kept));
        let mut login = Login {
            user: Some(field::text(&self.user.kept)),
            database: name(&self.database),
            ..Login::default()
        };
        let mut attributes = &self.attributes.kept[..];
        while let (Some(name), Some(value)) = (field::string(&mut attributes), field::string(&mut attributes))
        {
            let (name, value) = (field::text(name), field::text(value));
            if name == "program_name" {
                login.application = Some(value);
                continue;
            }
            let lower = name.to_ascii_lowercase();
            let secret = SECRET_WORDS.iter().any(|word| lower.contains(word));
            login.parameters.push((name, if secret { "(not kept)".into() } else { value }));
        }
        if let Some(number) = self.collation().filter(|number| !is_safe(*number)) {
            login.parameters.push((COLLATION.into(), number.to_string()));
        }
        Said::Login(login)
    }

    /// The number of the client's collation, where told.
    fn collation(&self) -> Option<u16> {
        match (&*self.fixed.kept, &*self.characters.kept) {
            (fixed, _) if fixed.len() == 32 => Some(fixed[8].into()),
            (_, &[low, high]) => Some(u16::from_le_bytes([low, high])),
            _ => None,
        }
    }

    /// The fixed fields; `true` once they are whole.
    fn fixed(&mut self, input: &mut &[u8]) -> bool {
        while let Some((byte, rest)) = input.split_first() {
            self.fixed.add(std::slice::from_ref(byte));
            *input = rest;
            let (told, whole) = match *self.fixed.kept {
                [low, high, ..]
                    if !Capabilities(u64::from(u16::from_le_bytes([low, high])))
                        .has(Capabilities::PROTOCOL_41) =>
                {
                    (u64::from(u16::from_le_bytes([low, high])), 5)
                }
                [a, b, c, d, ..] => (u64::from(u32::from_le_bytes([a, b, c, d])), 32),
                _ => continue,
            };
            self.shared = self.offered.shared(Capabilities(told));
            if self.fixed.kept.len() == whole {
                if let ([.., a, b, c, d], false) =
                    (&*self.fixed.kept, Capabilities(told).has(Capabilities::MYSQL) || whole == 5)
                {
                    let extended = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) << 32;
                    self.shared = self.offered.shared(Capabilities(told | extended));
                }
                return true;
            }
        }
        false
    }

    /// How what proves the identity comes.
    fn proof(&self) -> Field {
        if self.shared.has(Capabilities::SECURE_CONNECTION) || (!self.changes_user() && self.long_proof()) {
            Field::ProofLength
        } else {
            Field::ProofToZero
        }
    }

    fn long_proof(&self) -> bool {
        self.shared.has(Capabilities::PLUGIN_AUTH_LENENC)
    }

    fn has_database(&self) -> bool {
        self.changes_user() || self.shared.has(Capabilities::CONNECT_WITH_DB)
    }

    fn after_database(&mut self) -> Field {
        if self.changes_user() { self.skip(2, Field::CharacterSet) } else { Field::Plugin }
    }

    /// Goes on to a field of so many bytes.
    fn skip(&mut self, length: u64, field: Field) -> Field {
        self.skip = Skip(length);
        match (length, field) {
            (0, Field::Proof) => Field::Database,
            (0, Field::Attributes) => Field::Rest,
            _ => field,
        }
    }
}
