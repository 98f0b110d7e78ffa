//! Whom `auth.allow` lets in: a list as GlusterFS takes it, of addresses and names.
//!
//! Pure: text in, whether somebody is on it out.

use core::net::IpAddr;
use std::fmt;

/// Most items of a list.
const ITEMS_MAX: usize = 256;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest IPv6 address in text, in bytes.
const ADDRESS_BYTES_MAX: usize = 45;

/// One item. What has only digits, dots, slashes and asterisks in it, or a colon, is about
/// addresses, so no name reads as one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    /// `192.168.1.*`: of the address as it is written. `*` alone is of everybody.
    AddressPattern(String),
    /// `10.1.0.0/16`; a single address has all its bits.
    Network { first: IpAddr, bits: u8 },
    /// `app1`, `app*`: a client or a node.
    NamePattern(String),
}

/// A list that was checked. By default it lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowList(Vec<Item>);

impl AllowList {
    /// Reads items between commas; `None`: one of them is no address, network, pattern or name, or
    /// there are none, or more than 256.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let items = text.split(',').map(|item| Item::parse(item.trim()));
        let items = items.collect::<Option<Vec<_>>>()?;
        (items.len() <= ITEMS_MAX).then_some(Self(items))
    }

    /// Whether somebody with any of these addresses, or this name, is on it.
    #[must_use]
    pub fn admits(&self, addresses: &[IpAddr], name: &str) -> bool {
        self.0.iter().any(|item| match item {
            Item::AddressPattern(pattern) if pattern == "*" => true,
            Item::AddressPattern(pattern) => addresses
                .iter()
                .any(|address| matches(pattern, &address.to_canonical().to_string())),
            Item::Network { first, bits } => addresses
                .iter()
                .any(|address| prefix(address.to_canonical(), *bits) == prefix(*first, *bits)),
            Item::NamePattern(pattern) => matches(pattern, name),
        })
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, item) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            match item {
                Item::AddressPattern(text) | Item::NamePattern(text) => f.write_str(text)?,
                Item::Network { first, bits } if *bits == all_bits(*first) => {
                    write!(f, "{first}")?;
                }
                Item::Network { first, bits } => write!(f, "{first}/{bits}")?,
            }
        }
        Ok(())
    }
}

impl Item {
    fn parse(text: &str) -> Option<Self> {
        let numbers = text
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | '*' | '/'));
        let hexadecimal = text
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '*' | '/'));
        if text.is_empty() {
            return None;
        }
        if !numbers && !text.contains(':') {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
            let name = text.len() <= NAME_BYTES_MAX && text.chars().all(plain);
            return name.then(|| Self::NamePattern(text.to_owned()));
        }
        if text.contains('*') {
            let short = text.len() <= ADDRESS_BYTES_MAX && !text.contains('/');
            return (hexadecimal && short).then(|| Self::AddressPattern(text.to_ascii_lowercase()));
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let first = address.parse::<IpAddr>().ok()?.to_canonical();
        let bits = bits.unwrap_or_else(|| all_bits(first));
        (bits <= all_bits(first)).then_some(Self::Network { first, bits })
    }
}

fn all_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address's first bits; of another family another value.
fn prefix(address: IpAddr, bits: u8) -> (bool, u128) {
    let (value, unused) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32_u32.saturating_sub(bits.into())),
        IpAddr::V6(v6) => (v6.to_bits(), 128_u32.saturating_sub(bits.into())),
    };
    (address.is_ipv4(), value.checked_shr(unused).unwrap_or(0))
}

/// Whether the text is what the pattern says; `*` stands for any characters, and none.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = pattern.contains('*').then(|| parts.next_back()).flatten() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(list: &str, address: &str, name: &str) -> bool {
        let list = AllowList::parse(list).expect("a list");
        let addresses: Vec<IpAddr> = address.parse().into_iter().collect();
        list.admits(&addresses, name)
    }

    #[test]
    fn bad_2_a_list_takes_addresses_networks_patterns_and_names_and_nobody_else() {
        let yes = [
            ("*", "10.1.2.3", "app1"),
            ("10.1.2.3", "10.1.2.3", ""),
            ("10.1.2.3", "::ffff:10.1.2.3", ""),
            ("192.168.1.*", "192.168.1.77", ""),
            ("10.*.5", "10.9.9.5", ""),
            ("10.0.0.0/8", "10.200.0.1", ""),
            ("0.0.0.0/0", "10.200.0.1", ""),
            ("fd00::/16", "fd00:1::7", ""),
            ("FD00:*", "fd00:1::7", ""),
            ("app1", "", "app1"),
            ("app*", "10.1.2.3", "app17"),
            ("other, 10.1.2.3 ,app*", "10.1.2.3", "x"),
        ];
        for (list, address, name) in yes {
            assert!(admits(list, address, name), "{list} {address} {name}");
        }
        let no = [
            ("10.1.2.3", "10.1.2.4", "10.1.2.3"),
            ("10.1.2.3", "", "10.1.2.3"),
            ("192.168.1.*", "192.168.10.7", ""),
            ("10.0.0.0/8", "11.0.0.1", ""),
            ("10.0.0.0/8", "::a00:1", ""),
            ("0.0.0.0/0", "fd00::1", ""),
            ("fd00::/16", "fd01::1", ""),
            ("app1", "10.1.2.3", "app10"),
            ("app*", "10.1.2.3", "web1"),
            ("a*b*c", "", "abxbd"),
        ];
        for (list, address, name) in no {
            assert!(!admits(list, address, name), "{list} {address} {name}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_and_a_list_has_one_written_form() {
        for bad in [
            "",
            ",",
            "a,,b",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/129",
            "10.0.0.*/8",
            "300.1.1.1",
            "a b",
            "na/me",
            "gg::*",
            "1.2.3",
        ] {
            assert_eq!(AllowList::parse(bad), None, "{bad}");
        }
        let many = vec!["a"; ITEMS_MAX + 1].join(",");
        assert_eq!(AllowList::parse(&many), None);
        let list = AllowList::parse(" 10.0.0.0/8, 10.1.2.3/32 ,app*,*").expect("a list");
        assert_eq!(list.to_string(), "10.0.0.0/8,10.1.2.3,app*,*");
        assert_eq!(AllowList::parse(&list.to_string()), Some(list));
    }
}
