//! OIDs of built-in types. They are part of PostgreSQL's catalogue and never change; those of user-defined types differ
//! from database to database and are shown as numbers.

use super::Scalar;

/// What an OID stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Type {
    /// One value.
    Scalar(Scalar),
    /// An array of them.
    Array(Scalar),
}

/// OID, name, OID of the array type, and how it is decoded; in the order of OIDs.
pub(super) const SCALARS: &[(u32, &str, u32, Scalar)] = &[
    (16, "bool", 1000, Scalar::Bool),
    (17, "bytea", 1001, Scalar::Bytea),
    (18, "char", 1002, Scalar::Char),
    (19, "name", 1003, Scalar::Text),
    (20, "int8", 1016, Scalar::Int8),
    (21, "int2", 1005, Scalar::Int2),
    (23, "int4", 1007, Scalar::Int4),
    (25, "text", 1009, Scalar::Text),
    (26, "oid", 1028, Scalar::Oid),
    (114, "json", 199, Scalar::Text),
    (142, "xml", 143, Scalar::Text),
    (650, "cidr", 651, Scalar::Cidr),
    (700, "float4", 1021, Scalar::Float4),
    (701, "float8", 1022, Scalar::Float8),
    (705, "unknown", 0, Scalar::Text),
    (774, "macaddr8", 775, Scalar::MacAddress),
    (790, "money", 791, Scalar::Money),
    (829, "macaddr", 1040, Scalar::MacAddress),
    (869, "inet", 1041, Scalar::Inet),
    (1042, "bpchar", 1014, Scalar::Text),
    (1043, "varchar", 1015, Scalar::Text),
    (1082, "date", 1182, Scalar::Date),
    (1083, "time", 1183, Scalar::Time),
    (1114, "timestamp", 1115, Scalar::Timestamp),
    (1184, "timestamptz", 1185, Scalar::TimestampTz),
    (1186, "interval", 1187, Scalar::Interval),
    (1266, "timetz", 1270, Scalar::TimeTz),
    (1700, "numeric", 1231, Scalar::Numeric),
    (2950, "uuid", 2951, Scalar::Uuid),
    (3802, "jsonb", 3807, Scalar::Jsonb),
];

/// Built-in types that are not decoded but have a name.
const OTHERS: &[(u32, &str)] = &[
    (22, "int2vector"),
    (24, "regproc"),
    (27, "tid"),
    (28, "xid"),
    (29, "cid"),
    (30, "oidvector"),
    (600, "point"),
    (601, "lseg"),
    (602, "path"),
    (603, "box"),
    (604, "polygon"),
    (628, "line"),
    (718, "circle"),
    (1033, "aclitem"),
    (1034, "aclitem[]"),
    (1560, "bit"),
    (1562, "varbit"),
    (1790, "refcursor"),
    (2205, "regclass"),
    (2206, "regtype"),
    (2249, "record"),
    (2278, "void"),
    (3220, "pg_lsn"),
    (3614, "tsvector"),
    (3615, "tsquery"),
    (3904, "int4range"),
    (3906, "numrange"),
    (3908, "tsrange"),
    (3910, "tstzrange"),
    (3912, "daterange"),
    (3926, "int8range"),
    (4072, "jsonpath"),
    (4089, "regnamespace"),
    (4096, "regrole"),
    (5069, "xid8"),
];

/// The type with this OID, if it is one that is decoded.
pub(super) fn of(oid: u32) -> Option<Type> {
    if oid == 0 {
        return None;
    }
    if let Ok(index) = SCALARS.binary_search_by_key(&oid, |entry| entry.0) {
        return Some(Type::Scalar(SCALARS[index].3));
    }
    SCALARS.iter().find(|entry| entry.2 == oid).map(|entry| Type::Array(entry.3))
}

/// Whether `element` is an OID that is decoded as this scalar.
pub(super) fn is(element: u32, scalar: Scalar) -> bool {
    of(element) == Some(Type::Scalar(scalar))
}

/// The name of a built-in type, or the OID as a number.
pub(in super::super) fn type_name(oid: u32) -> String {
    for &(scalar, name, array, _) in SCALARS {
        if scalar == oid {
            return name.into();
        }
        if array == oid && oid != 0 {
            return format!("{name}[]");
        }
    }
    OTHERS.iter().find(|other| other.0 == oid).map_or_else(|| oid.to_string(), |other| other.1.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(SCALARS.is_sorted_by(|one, next| one.0 < next.0));
    }

    #[test]
    fn types_have_names() {
        assert_eq!(type_name(23), "int4");
        assert_eq!(type_name(1007), "int4[]");
        assert_eq!(type_name(2205), "regclass");
        assert_eq!(type_name(16_400), "16400");
        assert_eq!(of(0), None);
    }
}
