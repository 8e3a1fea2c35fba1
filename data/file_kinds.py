"""Recognises by its first bytes what a file is that was given as a shard but is none, and says what to do about it."""

COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"\x5d\0\0": ("lzma", "unlzma"),
    b"LZIP": ("lzip", "lzip -d"),
}
UNPACK = "unpack it and pack a tar, or give the folder to scripts/make_shards.py source="
TABLE = "scripts/make_shards.py makes shards of images and a table"
OTHERS = {
    b"PK\3\4": f"it is a zip, not a tar: {UNPACK}",
    b"PK\5\6": "it is an empty zip, not a tar",
    b"7z\xbc\xaf\x27\x1c": f"it is a 7z archive, not a tar: {UNPACK}",
    b"Rar!": f"it is a rar archive, not a tar: {UNPACK}",
    b"PAR1": f"it is a parquet table, not a tar: {TABLE}",
    b"ARROW1": f"it is an arrow file, not a tar: {TABLE}",
    b"\x89HDF": "it is an HDF5 file, not a tar",
    b"version https://git-lfs.github.com": "it is a Git LFS pointer, the file itself was not fetched: git lfs pull",
    b"\xff\xd8\xff": "it is a JPEG, not a tar: scripts/make_shards.py source=FOLDER packs pictures",
    b"\x89PNG": "it is a PNG, not a tar: scripts/make_shards.py source=FOLDER packs pictures",
    b"%PDF": "it is a PDF, not a tar",
    b"\x80\2": "it is a pickle, not a tar; it is not opened",
}
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<error", b"<head", b"<!--")
FETCH = "a server's answer in the place of the file: fetch it again, logged in if need be"


def recognised(head: bytes) -> str | None:
    """One line about a file that begins with these bytes, None if its kind is unknown."""
    for magic, (name, command) in COMPRESSED.items():
        if head.startswith(magic):
            return f"it is compressed with {name}: uncompress it ({command}), because members are read by position"
    for magic, line in OTHERS.items():
        if head.startswith(magic):
            return line
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(PAGES):
        return f"it is a web page or XML, not a tar: {FETCH}"
    if text.startswith((b"{", b"[")):
        return f"it is JSON or text, not a tar: {FETCH}"
    printed = head.decode("utf-8", "replace")
    if printed and sum(c.isprintable() or c in "\r\n\t" for c in printed) > 0.98 * len(printed):
        return "it is text, not a tar"
    return None
