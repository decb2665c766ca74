"""The tar scanner's inner loop: one resumable pass over windows of an archive.

    window   uint8[w], w a multiple of 512; window[0] is the archive's byte `base`, a multiple of 512,
             so that a header block never straddles two windows
    state    int64[STATE_FIELDS]: everything that outlives a window, by the names below
    texts    uint8[3, capacity]: the extended header being gathered, the next member's name, the global name
    columns  names uint8[], name_ends/offsets/lengths int64[rows], checksums uint32[rows]: the members found

`scan_window` goes on where `state` says until it needs something of its caller, and answers what: more bytes
(MORE), room for rows or longer texts (ROWS_FULL, TEXTS_FULL, NAMES_FULL), or that the archive is at its end
(END) or wrong (the other answers, with BLOCK_AT the offset to name). It never looks at a byte twice.
"""

from __future__ import annotations

import numba
import numpy as np

from kvmeta.sources.crc_kernels import crc32c_update

BLOCK = 512

MORE, ROWS_FULL, TEXTS_FULL, NAMES_FULL, END = 0, 1, 2, 3, 4
BAD_CHECKSUM, BAD_NUMBER, BAD_PAX, LONE_ZERO_BLOCK, PAST_END, TOO_LONG = 5, 6, 7, 8, 9, 10

(
    PHASE,  # what the byte at POSITION belongs to, see below
    POSITION,  # archive offset of the next byte to look at
    LEFT,  # bytes of the present body still to come
    REGISTER,  # CRC-32C register of the present member
    ROWS,  # finished rows in the columns
    NAMES_USED,  # bytes of `names` that belong to finished rows and to the present member
    GATHERED,  # bytes of the extended header gathered so far
    GATHERING,  # its type: L, x or g
    NAME_SOURCE,  # where texts[1] is from: NOTHING, GNU or PAX
    NAME_BYTES,
    SIZE,  # of the next member by its PAX header, -1 = not told
    SPARSE,  # 1 = its PAX header says it is sparse
    GLOBAL_NAME_BYTES,  # texts[2], -1 = none
    GLOBAL_SIZE,
    SKIPPED,  # entries that are neither regular files nor directories
    ZERO_BLOCKS,  # seen in a row
    BLOCK_AT,  # offset of the last header block looked at
    WANTED,  # bytes of text a *_FULL answer asks room for, or the size of a member that is TOO_LONG
    ARCHIVE_BYTES,  # the file's size when it was opened
    CHECKSUMS,  # 1 = sum the members' bytes
    STATE_FIELDS,
) = range(21)

IN_HEADERS, IN_FILE, IN_EXTENSION, IN_GAP, IN_SPARSE_MAP = 0, 1, 2, 3, 4
NOTHING, GNU, PAX = 0, 1, 2

_LENGTH_MAX = 0xFFFFFFFF  # a location's length is u4
_LANES = np.uint64(0x00FF00FF00FF00FF)
_BYTE = np.uint64(8)
_TYPE_AT, _MAGIC_AT, _SIZE_AT, _SUM_AT, _PREFIX_AT, _SPARSE_MORE_AT, _MAP_MORE_AT = (
    156,
    257,
    124,
    148,
    345,
    482,
    504,
)


_PATH, _SIZE_KEY, _SPARSE_KEY = (np.frombuffer(key, np.uint8) for key in (b"path", b"size", b"GNU.sparse."))


@numba.njit(nogil=True, cache=True)
def _header_sum(window, words, at):
    """Return the unsigned sum of a header block with its checksum field as spaces; -1 where all is zero."""
    total, seen = np.uint64(0), np.uint64(0)
    for i in range(at >> 3, (at + BLOCK) >> 3):  # four 16-bit lanes: 64 words x 2 bytes x 255 < 2**16
        word = words[i]
        seen |= word
        total += (word & _LANES) + ((word >> _BYTE) & _LANES)
    if seen == np.uint64(0):
        return -1
    found = 8 * 32
    for lane in range(4):
        found += np.int64((total >> np.uint64(16 * lane)) & np.uint64(0xFFFF))
    for i in range(at + _SUM_AT, at + _SUM_AT + 8):
        found -= np.int64(window[i])
    return found


@numba.njit(nogil=True, cache=True)
def _signed_header_sum(window, at):
    """Return what writers that summed signed bytes put down (old SunOS and some of its heirs)."""
    found = 8 * 32
    for i in range(at, at + BLOCK):
        if i < at + _SUM_AT or i >= at + _SUM_AT + 8:
            found += np.int64(np.int8(window[i]))
    return found


@numba.njit(nogil=True, cache=True)
def _number(window, at, n):
    """Return the number of an n-byte field: octal text, or base-256 where the top bit is set, or -1."""
    first = window[at]
    if first & 0x80:
        if first != 0x80:  # negative, or beyond any size
            return -1
        value = 0
        for i in range(at + 1, at + n):
            if value >> 54:
                return -1
            value = (value << 8) | np.int64(window[i])
        return value
    i, end, value = at, at + n, 0
    while i < end and window[i] == 32:
        i += 1
    while i < end and 48 <= window[i] <= 55:
        value = (value << 3) | np.int64(window[i] - 48)
        i += 1
    while i < end:
        if window[i] != 0 and window[i] != 32:
            return -1
        i += 1
    return value


@numba.njit(nogil=True, cache=True)
def _same(text, start, n, word):
    if n != len(word):
        return False
    for i in range(n):  # noqa: SIM110 - a kernel has no generators
        if text[start + i] != word[i]:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _decimal(text, start, end):
    """Return the decimal number text[start:end], or -1."""
    value = 0
    for i in range(start, end):
        if not 48 <= text[i] <= 57 or value > 1 << 58:
            return -1
        value = value * 10 + np.int64(text[i] - 48)
    return value if end > start else -1


@numba.njit(nogil=True, cache=True)
def _read_pax(state, texts, n, is_global):
    """Take path, size and the sparse marks from records "<length> <key>=<value>"; False = malformed."""
    text = texts[0]
    at = 0
    while at < n and text[at] != 0:
        space = at
        while space < n and text[space] != 32:
            space += 1
        length = _decimal(text, at, space)
        end = at + length - 1
        if length <= 0 or end >= n or end <= space or text[end] != 10:
            return False
        equals = space + 1
        while equals < end and text[equals] != 61:
            equals += 1
        if equals == end:
            return False
        key, key_bytes, value = space + 1, equals - space - 1, equals + 1
        if _same(text, key, key_bytes, _PATH):
            stop = end
            while stop > value and text[stop - 1] == 47:
                stop -= 1
            target = texts[2] if is_global else texts[1]
            for i in range(stop - value):
                target[i] = text[value + i]
            if is_global:
                state[GLOBAL_NAME_BYTES] = stop - value
            elif stop > value:
                state[NAME_BYTES] = stop - value
                state[NAME_SOURCE] = PAX
        elif _same(text, key, key_bytes, _SIZE_KEY):
            size = _decimal(text, value, end)
            if size < 0 and value < end:
                return False
            state[GLOBAL_SIZE if is_global else SIZE] = size
        elif key_bytes > len(_SPARSE_KEY) and _same(text, key, len(_SPARSE_KEY), _SPARSE_KEY):
            state[SPARSE] = 1
        at = end + 1
    return True


@numba.njit(nogil=True, cache=True)
def _finish_extension(state, texts):
    """Apply the gathered extended header to the next member; False = malformed."""
    n = state[GATHERED]
    if state[GATHERING] == ord("L"):
        if state[NAME_SOURCE] != PAX:
            i = 0
            while i < n and texts[0, i] != 0:
                texts[1, i] = texts[0, i]
                i += 1
            state[NAME_BYTES] = i
            state[NAME_SOURCE] = GNU
        return True
    return _read_pax(state, texts, n, state[GATHERING] == ord("g"))


@numba.njit(nogil=True, cache=True)
def _field_bytes(window, at, n):
    """Return the length of the NUL-terminated text in an n-byte field."""
    used = 0
    while used < n and window[at + used] != 0:
        used += 1
    return used


@numba.njit(nogil=True, cache=True)
def _append(names, used, text, start, n):
    for i in range(n):
        names[used + i] = text[start + i]
    return used + n


@numba.njit(nogil=True, cache=True)
def _has_prefix(window, at):
    """Tell whether the block is POSIX ustar ("ustar" NUL); GNU ("ustar" space) keeps times in that field."""
    magic = at + _MAGIC_AT
    return window[magic] == 117 and window[magic + 4] == 114 and window[magic + 5] == 0


@numba.njit(nogil=True, cache=True)
def _write_name(window, at, state, texts, names):
    """Append the member's name to `names`, without a leading "./"; return the bytes used, or -1: no room."""
    start = state[NAMES_USED]
    pending = state[NAME_BYTES] if state[NAME_SOURCE] != NOTHING else state[GLOBAL_NAME_BYTES]
    if start + max(pending, 256) > len(names):
        state[WANTED] = start + max(pending, 256)
        return -1
    if state[NAME_SOURCE] != NOTHING:
        used = _append(names, start, texts[1], 0, pending)
    elif pending > 0:
        used = _append(names, start, texts[2], 0, pending)
    else:
        used = start
        if window[at + _PREFIX_AT] != 0 and _has_prefix(window, at):
            used = _append(names, used, window, at + _PREFIX_AT, _field_bytes(window, at + _PREFIX_AT, 155))
            names[used] = 47
            used += 1
        used = _append(names, used, window, at, _field_bytes(window, at, 100))
    if used - start >= 2 and names[start] == 46 and names[start + 1] == 47:
        for i in range(start + 2, used):
            names[i - 2] = names[i]
        used -= 2
    return used


@numba.njit(nogil=True, cache=True)
def _round_up(n):
    return (n + BLOCK - 1) & ~(BLOCK - 1)


@numba.njit(nogil=True, cache=True)
def _skip(state, size):
    state[PHASE] = IN_GAP
    state[LEFT] = _round_up(size)


@numba.njit(nogil=True, cache=True)
def _read_header(window, words, base, state, texts, names, name_ends, offsets, lengths, checksums):
    """Read the header block at POSITION; answer MORE and move on, or answer what is needed and stay."""
    position = state[POSITION]
    at = position - base
    state[BLOCK_AT] = position
    found = _header_sum(window, words, at)
    if found < 0:
        state[POSITION] += BLOCK
        state[ZERO_BLOCKS] += 1
        return END if state[ZERO_BLOCKS] == 2 else MORE
    written = _number(window, at + _SUM_AT, 8)
    if written != found and written != _signed_header_sum(window, at):
        return BAD_CHECKSUM
    if state[ZERO_BLOCKS]:
        return LONE_ZERO_BLOCK
    kind = window[at + _TYPE_AT]
    size = _number(window, at + _SIZE_AT, 12)
    if size < 0:
        return BAD_NUMBER

    if kind == ord("L") or kind == ord("x") or kind == ord("g") or kind == ord("X"):
        if size > texts.shape[1]:
            state[WANTED] = size
            return TEXTS_FULL
        state[GATHERING] = ord("x") if kind == ord("X") else kind  # X: Solaris, before POSIX settled on x
        state[GATHERED], state[LEFT], state[PHASE] = 0, size, IN_EXTENSION
        state[POSITION] += BLOCK
        return MORE
    if kind == ord("K"):
        state[POSITION] += BLOCK
        _skip(state, size)
        return MORE

    told = state[SIZE] if state[SIZE] >= 0 else state[GLOBAL_SIZE]
    if told >= 0:
        size = told
    is_file = kind == ord("0") or kind == 0 or kind == ord("7")
    is_folder = kind == ord("5")
    if kind == 0:  # before POSIX a directory was a file whose name ends with a slash
        n = _field_bytes(window, at, 100)
        is_folder = n > 0 and window[at + n - 1] == 47
    body = 0 if is_folder or ord("1") <= kind <= ord("6") else size
    data = position + BLOCK
    if data + body > state[ARCHIVE_BYTES]:
        return PAST_END

    if is_file and not is_folder and not state[SPARSE]:
        if state[ROWS] == len(lengths):
            return ROWS_FULL
        used = _write_name(window, at, state, texts, names)
        if used < 0:
            return NAMES_FULL
        row = state[ROWS]
        name_ends[row], offsets[row], lengths[row] = used, data, size
        if size > _LENGTH_MAX:
            state[WANTED] = size
            return TOO_LONG
        state[NAMES_USED] = used
        if size and state[CHECKSUMS]:
            state[PHASE], state[LEFT], state[REGISTER] = IN_FILE, size, 0xFFFFFFFF
        else:
            checksums[row] = 0
            state[ROWS] = row + 1
            _skip(state, size)
    else:
        if not is_folder:
            state[SKIPPED] += 1
        _skip(state, body)
        if kind == ord("S") and window[at + _SPARSE_MORE_AT]:
            state[PHASE] = IN_SPARSE_MAP
    state[POSITION] = data
    state[NAME_SOURCE], state[SIZE], state[SPARSE] = NOTHING, -1, 0
    return MORE


@numba.njit(nogil=True, cache=True)
def scan_window(window, words, filled, base, state, texts, names, name_ends, offsets, lengths, checksums):
    """Scan window[:filled] from where `state` stands; `words` is the window as uint64. Returns an answer."""
    while True:
        phase = state[PHASE]
        at = state[POSITION] - base
        if phase == IN_GAP:
            state[POSITION] += state[LEFT]
            state[PHASE] = IN_HEADERS
        elif phase == IN_FILE:
            n = min(state[LEFT], filled - at)
            if n <= 0:
                return MORE
            register = crc32c_update(np.uint64(state[REGISTER]), window, words, at, n)
            state[REGISTER] = np.int64(register)
            state[POSITION] += n
            state[LEFT] -= n
            if state[LEFT] == 0:
                checksums[state[ROWS]] = np.uint32(register ^ np.uint64(0xFFFFFFFF))
                state[ROWS] += 1
                state[POSITION] = _round_up(state[POSITION])
                state[PHASE] = IN_HEADERS
        elif phase == IN_EXTENSION:
            n = min(state[LEFT], filled - at)
            if n <= 0 and state[LEFT] > 0:
                return MORE
            for i in range(n):
                texts[0, state[GATHERED] + i] = window[at + i]
            state[GATHERED] += n
            state[POSITION] += n
            state[LEFT] -= n
            if state[LEFT] == 0:
                if not _finish_extension(state, texts):
                    return BAD_PAX
                state[POSITION] = _round_up(state[POSITION])
                state[PHASE] = IN_HEADERS
        elif at + BLOCK > filled:
            return MORE
        elif phase == IN_SPARSE_MAP:
            if window[at + _MAP_MORE_AT] == 0:
                state[PHASE] = IN_GAP
            state[POSITION] += BLOCK
        else:
            answer = _read_header(
                window, words, base, state, texts, names, name_ends, offsets, lengths, checksums
            )
            if answer != MORE:
                return answer


@numba.njit(nogil=True, cache=True)
def with_prefix(names, name_ends, prefix):
    """Return (names, name_ends) with `prefix` before each name."""
    rows, extra = len(name_ends), len(prefix)
    longer = np.empty(len(names) + rows * extra, np.uint8)
    ends = np.empty(rows, np.int64)
    start, used = 0, 0
    for row in range(rows):
        used = _append(longer, used, prefix, 0, extra)
        used = _append(longer, used, names, start, name_ends[row] - start)
        start = name_ends[row]
        ends[row] = used
    return longer, ends
