//! The Merkle tree over the trail's records, by RFC 6962, section 2.1 (RFC 9162 has the same).
//!
//! Leaf *n* is the hash of record *n* + 1: the 32 bytes that stand in the record as `chain.hash`, not the record's text. So a leaf is
//! known from the chain alone, and costs one block of SHA-256 however long the record is.
//!
//! Only the right edge is kept: at each level of tiles the hashes of the one that is not full yet. That is 255 hashes for each
//! factor of 256 in size, 40 KiB for a trail of any length. Full tiles are handed to the caller.

use sha2::{Digest, Sha256};

use super::super::chain::Hash;

/// Hashes in a full tile.
pub(in crate::trail) const WIDTH: usize = 256;
/// Levels of the tree in one level of tiles.
const HEIGHT: u32 = 8;

/// The hash of a leaf.
pub(in crate::trail) fn leaf(data: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    hasher.update(data);
    Hash::new(hasher.finalize().into())
}

/// The leaf of a record with this hash.
pub(in crate::trail) fn leaf_of(record: Hash) -> Hash {
    leaf(record.as_bytes())
}

/// The hash of a node with two children.
fn node(left: Hash, right: Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(left.as_bytes());
    bytes[33..].copy_from_slice(right.as_bytes());
    Hash::new(Sha256::digest(bytes).into())
}

/// The root of a perfect subtree over these hashes: a power of two of them, and no more than a tile has.
fn perfect(hashes: &[Hash]) -> Hash {
    let mut row = [Hash::new([0; 32]); WIDTH / 2];
    let mut width = hashes.len() / 2;
    if width == 0 {
        return hashes.first().copied().unwrap_or(Hash::new(Sha256::digest([]).into()));
    }
    for (parent, pair) in row.iter_mut().zip(hashes.chunks_exact(2)) {
        *parent = node(pair[0], pair[1]);
    }
    while width > 1 {
        width /= 2;
        for parent in 0..width {
            row[parent] = node(row[2 * parent], row[2 * parent + 1]);
        }
    }
    row[0]
}

/// A tile: consecutive hashes of one level. What it covers never changes, it only grows to its width.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::trail) struct Tile {
    pub(in crate::trail) level: u32,
    pub(in crate::trail) index: u64,
    pub(in crate::trail) hashes: Vec<Hash>,
}

impl Tile {
    /// Index of the leaf after the last one that it covers.
    pub(in crate::trail) fn end(&self) -> u64 {
        let hashes = self.index * WIDTH as u64 + self.hashes.len() as u64;
        hashes.checked_shl(HEIGHT * self.level).unwrap_or(u64::MAX)
    }

    /// As it is stored.
    pub(in crate::trail) fn bytes(&self) -> Vec<u8> {
        self.hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
    }
}

/// Hashes that a level of a tree of this size has.
pub(in crate::trail) fn hashes_at(level: u32, size: u64) -> u64 {
    size.checked_shr(HEIGHT * level).unwrap_or(0)
}

/// A tree that grows at its end.
#[derive(Clone, Debug, Default)]
pub(in crate::trail) struct Tree {
    size: u64,
    /// For each level of tiles the hashes of its last tile, fewer than a full one has.
    edge: Vec<Vec<Hash>>,
}

impl Tree {
    /// Leaves.
    pub(in crate::trail) fn size(&self) -> u64 {
        self.size
    }

    /// Takes up a tree of `size` leaves from its partial tiles, which `read` finds by level, index and width.
    pub(in crate::trail) fn resume<E>(
        size: u64,
        mut read: impl FnMut(u32, u64, usize) -> Result<Vec<Hash>, E>,
    ) -> Result<Self, E> {
        let mut edge = Vec::new();
        for level in 0.. {
            let hashes = hashes_at(level, size);
            if hashes == 0 {
                break;
            }
            let (index, width) = (hashes / WIDTH as u64, (hashes % WIDTH as u64) as usize);
            edge.push(if width == 0 { Vec::new() } else { read(level, index, width)? });
        }
        Ok(Self { size, edge })
    }

    /// Adds a leaf. Tiles that are full by that are appended to `full`, the lowest first.
    pub(in crate::trail) fn push(&mut self, leaf: Hash, full: &mut Vec<Tile>) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0.. {
            if self.edge.len() == level {
                self.edge.push(Vec::with_capacity(WIDTH));
            }
            let hashes = &mut self.edge[level];
            hashes.push(hash);
            if hashes.len() < WIDTH {
                return;
            }
            hash = perfect(hashes);
            let hashes = std::mem::replace(hashes, Vec::with_capacity(WIDTH));
            // A tree has eight levels of tiles at most.
            let level = level as u32;
            full.push(Tile { level, index: hashes_at(level + 1, self.size) - 1, hashes });
        }
    }

    /// The partial tiles, the lowest first.
    pub(in crate::trail) fn edge(&self) -> impl Iterator<Item = Tile> {
        self.edge.iter().zip(0..).filter(|(hashes, _)| !hashes.is_empty()).map(|(hashes, level)| Tile {
            level,
            index: hashes_at(level + 1, self.size),
            hashes: hashes.clone(),
        })
    }

    /// The root, as RFC 6962 has it.
    pub(in crate::trail) fn root(&self) -> Hash {
        let mut subtrees = Vec::new();
        for hashes in self.edge.iter().rev() {
            let mut rest = hashes.as_slice();
            while let Some(bits) = rest.len().checked_ilog2() {
                let (left, right) = rest.split_at(1 << bits);
                subtrees.push(perfect(left));
                rest = right;
            }
        }
        let right_to_left = subtrees.into_iter().rev();
        right_to_left.reduce(|right, left| node(left, right)).unwrap_or_else(|| perfect(&[]))
    }
}

/// The inclusion proof of leaf `index` in a tree of `size` leaves, from the leaf's sibling up (RFC 6962, section 2.1.1). `read` finds the
/// first hashes of a tile by level, index and how many.
pub(in crate::trail) fn inclusion<E>(
    index: u64,
    size: u64,
    mut read: impl FnMut(u32, u64, usize) -> Result<Vec<Hash>, E>,
) -> Result<Vec<Hash>, E> {
    let mut path = Vec::new();
    let (mut begin, mut end) = (0, size);
    while end - begin > 1 {
        let middle = begin + split(end - begin);
        if index < middle {
            path.push(range(middle, end, &mut read)?);
            end = middle;
        } else {
            path.push(range(begin, middle, &mut read)?);
            begin = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The largest power of two below `leaves`, which are at least two.
fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// The root of the tree over these leaves, as it is part of a larger tree.
fn range<E>(
    begin: u64,
    end: u64,
    read: &mut impl FnMut(u32, u64, usize) -> Result<Vec<Hash>, E>,
) -> Result<Hash, E> {
    let leaves = end - begin;
    if !leaves.is_power_of_two() {
        let middle = begin + split(leaves);
        return Ok(node(range(begin, middle, read)?, range(middle, end, read)?));
    }
    let (level, width) = (leaves.ilog2() / HEIGHT, 1_usize << (leaves.ilog2() % HEIGHT));
    let first = hashes_at(level, begin);
    let (index, offset) = (first / WIDTH as u64, (first % WIDTH as u64) as usize);
    let hashes = read(level, index, offset + width)?;
    Ok(perfect(hashes.get(offset..offset + width).unwrap_or_default()))
}

/// The root that an inclusion proof leads to (RFC 9162, section 2.1.3.2); `None` where it is not a proof for this index and size.
pub(in crate::trail) fn root_by(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let (mut place, mut last) = (index, size.checked_sub(1).filter(|last| index <= *last)?);
    let mut root = leaf;
    for sibling in path {
        if last == 0 {
            return None;
        }
        if place & 1 == 1 || place == last {
            root = node(*sibling, root);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            root = node(root, *sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(root)
}

#[cfg(test)]
pub(in crate::trail) mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    /// Leaves and roots of the reference implementation of Certificate Transparency (merkle_tree_test.cc).
    const LEAVES: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// A tree with all its tiles, in memory.
    #[derive(Default)]
    pub(in crate::trail) struct Whole {
        pub(in crate::trail) tree: Tree,
        pub(in crate::trail) tiles: BTreeMap<(u32, u64), Vec<Hash>>,
    }

    impl Whole {
        pub(in crate::trail) fn push(&mut self, leaf: Hash) {
            let mut full = Vec::new();
            self.tree.push(leaf, &mut full);
            self.tiles.extend(full.into_iter().map(|tile| ((tile.level, tile.index), tile.hashes)));
        }

        pub(in crate::trail) fn read(&self, level: u32, index: u64, width: usize) -> Vec<Hash> {
            let partial = || {
                let mut edge = self.tree.edge();
                edge.find(|tile| (tile.level, tile.index) == (level, index)).map(|tile| tile.hashes)
            };
            let tile = self.tiles.get(&(level, index)).cloned().or_else(partial).unwrap();
            tile[..width].to_vec()
        }

        pub(in crate::trail) fn inclusion(&self, index: u64) -> Vec<Hash> {
            let Ok(path) = inclusion(index, self.tree.size(), |level, index, width| {
                Ok::<_, Infallible>(self.read(level, index, width))
            });
            path
        }
    }

    #[test]
    fn roots_and_paths_are_those_of_certificate_transparency() {
        let mut whole = Whole::default();
        assert_eq!(whole.tree.root().to_string(), ROOTS[0]);
        for (data, root) in LEAVES.iter().zip(&ROOTS[1..]) {
            whole.push(leaf(data));
            assert_eq!(whole.tree.root().to_string(), *root);
        }
        let path: Vec<String> = whole.inclusion(5).iter().map(Hash::to_string).collect();
        assert_eq!(
            path,
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
    }

    /// What RFC 6962 says, as it says it.
    fn defined(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => perfect(&[]),
            [leaf] => *leaf,
            leaves => {
                let (left, right) = leaves.split_at(usize::try_from(split(leaves.len() as u64)).unwrap());
                node(defined(left), defined(right))
            }
        }
    }

    #[test]
    fn every_size_has_the_root_of_the_definition_and_proves_its_leaves() {
        let leaves: Vec<Hash> = (0..70_000_u32).map(|number| leaf(&number.to_be_bytes())).collect();
        let sizes = [1, 2, 3, 255, 256, 257, 300, 511, 512, 513, 65_535, 65_536, 65_537, 66_000, 70_000];
        let mut whole = Whole::default();
        for (leaf, size) in leaves.iter().zip(1_usize..) {
            whole.push(*leaf);
            if !sizes.contains(&size) {
                continue;
            }
            let root = whole.tree.root();
            assert_eq!(root, defined(&leaves[..size]), "{size}");
            let Ok(resumed) = Tree::resume(size as u64, |level, index, width| {
                Ok::<_, Infallible>(whole.read(level, index, width))
            });
            assert_eq!(resumed.root(), root);
            for index in [0, 1, size / 3, size / 2, size - 1].map(|index| index as u64) {
                let path = whole.inclusion(index);
                let leaf = leaves[usize::try_from(index).unwrap().min(size - 1)];
                let leads = |index, path: &[Hash]| root_by(leaf, index, size as u64, path) == Some(root);
                if index >= size as u64 {
                    continue;
                }
                assert!(leads(index, &path), "{index} of {size}");
                assert!(!leads(index + 1, &path), "{index} of {size}");
                assert!(!leads(index, &[path.clone(), vec![root]].concat()));
                assert!(path.is_empty() || !leads(index, &path[1..]));
            }
        }
        // The example of the C2SP specification.
        let full = |level| whole.tiles.keys().filter(|tile| tile.0 == level).count();
        assert_eq!((full(0), full(1), full(2)), (273, 1, 0));
        let widths: Vec<usize> = whole.tree.edge().map(|tile| tile.hashes.len()).collect();
        assert_eq!(widths, [112, 17, 1]);
    }
}
