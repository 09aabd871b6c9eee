package iso

import (
	"io/fs"
	"strings"
)

// systemUse is what Rock Ridge says of a directory record.
type systemUse struct {
	posix      bool // the next five are known
	mode       fs.FileMode
	uid, gid   uint32
	links      uint32
	serial     uint32
	hasTime    bool
	mtime      int64
	name       string
	target     string
	major      uint32
	minor      uint32
	child      int64 // sector of a directory that was moved, or -1
	relocated  bool  // it is one that was moved
	compressed bool

	nameMore   bool
	targetText strings.Builder
	slash      bool // before the next component of the target
}

// systemUse reads the entries behind a directory record and their
// continuations.
func (x *reader) systemUse(b []byte) (*systemUse, error) {
	u := &systemUse{child: -1}
	if !x.rockRidge {
		return u, nil
	}
	b = b[min(x.skip, len(b)):]
	for part := 0; ; part++ {
		next, err := u.entries(b)
		if err != nil {
			return nil, err
		}
		if next == nil {
			break
		}
		if part == maxRestParts {
			return nil, corrupt("entries of Rock Ridge in more than %d places", maxRestParts)
		}
		if x.restBytes += next.size; next.size > SectorSize || x.restBytes > maxRestBytes {
			return nil, corrupt("a continuation of %d bytes, of %d in all", next.size, x.restBytes)
		}
		b = make([]byte, next.size)
		if err := x.readAt(b, next.off); err != nil {
			return nil, err
		}
	}
	u.target = u.targetText.String()
	if len(u.target) > maxTarget {
		return nil, corrupt("a symbolic link to a target of %d bytes, want at most %d", len(u.target), maxTarget)
	}
	return u, nil
}

// place is where entries go on, in bytes.
type place struct{ off, size int64 }

// entries reads one area of entries, and returns where they go on, if anywhere.
func (u *systemUse) entries(b []byte) (*place, error) {
	var next *place
	for len(b) >= useHeader && string(b[:2]) != "ST" {
		n := int(b[2])
		if n == 0 && b[0] == 0 { // padding
			break
		}
		if n < useHeader || n > len(b) {
			return nil, corrupt("entry %q of Rock Ridge has %d bytes, where %d are left", b[:2], n, len(b))
		}
		signature, data := string(b[:2]), b[useHeader:n]
		b = b[n:]
		if want := leastData(signature); len(data) < want {
			return nil, corrupt("entry %q of Rock Ridge has %d bytes of data, want %d", signature, len(data), want)
		}
		switch signature {
		case "CE":
			next = &place{int64(le.Uint32(data))*SectorSize + int64(le.Uint32(data[8:])), int64(le.Uint32(data[16:]))}
		case "PX":
			u.posix = true
			if err := u.setMode(le.Uint32(data)); err != nil {
				return nil, err
			}
			u.links, u.uid, u.gid = le.Uint32(data[8:]), le.Uint32(data[16:]), le.Uint32(data[24:])
			if len(data) >= 40 { // not before version 1.12
				u.serial = le.Uint32(data[32:])
			}
		case "TF":
			u.setTime(data[0], data[1:])
		case "NM":
			// "." and ".." as flags are for directories' own entries.
			if data[0]&(nameSelf|nameParent) == 0 && (u.name == "" || u.nameMore) && len(u.name) <= maxName {
				u.name += string(data[1:])
				u.nameMore = data[0]&nameMore != 0
			}
		case "SL":
			if err := u.addTarget(data[1:]); err != nil {
				return nil, err
			}
		case "PN":
			u.major, u.minor = le.Uint32(data), le.Uint32(data[8:])
			if u.major == 0 && u.minor > 0xFF { // all in one, as in old Unix
				u.major, u.minor = u.minor>>8, u.minor&0xFF
			}
		case "CL":
			u.child = int64(le.Uint32(data))
		case "RE":
			u.relocated = true
		case "ZF":
			u.compressed = true
		}
	}
	return next, nil
}

// leastData returns how many bytes of data an entry has at least.
func leastData(signature string) int {
	switch signature {
	case "CE":
		return 24
	case "PX":
		return 32
	case "PN":
		return 16
	case "CL":
		return 8
	case "TF", "NM", "SL":
		return 1
	}
	return 0
}

func (u *systemUse) setMode(m uint32) error {
	u.mode = fs.FileMode(m & 0o777)
	switch m & 0o170000 {
	case 0o100000:
	case 0o040000:
		u.mode |= fs.ModeDir
	case 0o120000:
		u.mode |= fs.ModeSymlink
	case 0o060000:
		u.mode |= fs.ModeDevice
	case 0o020000:
		u.mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0o010000:
		u.mode |= fs.ModeNamedPipe
	case 0o140000:
		u.mode |= fs.ModeSocket
	default:
		return corrupt("mode 0%o", m)
	}
	for bit, mode := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			u.mode |= mode
		}
	}
	return nil
}

// setTime takes the time of modification out of the times that flags name.
func (u *systemUse) setTime(flags byte, b []byte) {
	size := 7
	if flags&timeLong != 0 {
		size = 17
	}
	if flags&1 != 0 { // when it was created
		b = b[min(size, len(b)):]
	}
	if flags&timeModified == 0 || len(b) < size {
		return
	}
	u.hasTime = true
	if size == 17 {
		u.mtime = parseLongDate(b)
	} else {
		u.mtime = parseShortDate(b)
	}
}

// addTarget reads the components of a symbolic link's target.
func (u *systemUse) addTarget(b []byte) error {
	for len(b) >= 2 {
		flags, n := b[0], int(b[1])
		if n > len(b)-2 {
			return corrupt("a component of %d bytes in the target of a symbolic link, where %d are left", n, len(b)-2)
		}
		text := string(b[2:][:n])
		b = b[2+n:]
		if u.slash {
			u.targetText.WriteByte('/')
		}
		switch {
		case flags&nameSelf != 0:
			text = "."
		case flags&nameParent != 0:
			text = ".."
		case flags&nameRoot != 0:
			text = "/"
		}
		u.targetText.WriteString(text)
		u.slash = flags&(nameMore|nameRoot) == 0
		if strings.IndexByte(text, 0) >= 0 || u.targetText.Len() > 2*maxTarget {
			return corrupt("the target of a symbolic link has a NUL or is too long")
		}
	}
	return nil
}
