package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// image is what the file of a kernel says about itself.
type image struct {
	release string // as uname -r; "" if the file does not say
	arch    string
}

// readImage recognises the two boot formats, both little-endian.
//
// A bzImage (Documentation/arch/x86/boot.rst) has
//
//	0x1f1 u8   setup sectors
//	0x1fe u16  0xaa55
//	0x202      "HdrS"
//	0x206 u16  boot protocol version
//	0x20e u16  offset, less 0x200, of a string that begins with the release
//	0x236 u16  load flags; bit 0: has a 64-bit entry point (protocol 2.12)
//
// An arm64 Image (Documentation/arch/arm64/booting.rst) has "ARM\x64" at 0x38;
// it is not compressed, so the kernel's banner can be found in it.
func readImage(c tree.Content) (image, error) {
	hdr := make([]byte, 0x240)
	n, err := c.ReadAt(hdr, 0)
	if err != nil && err != io.EOF {
		return image{}, err
	}
	if n < len(hdr) {
		return image{}, fmt.Errorf("%w: %d bytes", ErrFormat, n)
	}
	le := binary.LittleEndian
	switch {
	case string(hdr[0x202:0x206]) == "HdrS" && le.Uint16(hdr[0x1fe:]) == 0xaa55:
		if v := le.Uint16(hdr[0x206:]); v < 0x20c || hdr[0x236]&1 == 0 {
			return image{}, fmt.Errorf("%w: an x86 kernel without a 64-bit entry point (boot protocol %d.%02d)", ErrArch, v>>8, v&0xff)
		}
		release, err := bzImageRelease(c, hdr)
		return image{release, "amd64"}, err
	case string(hdr[0x38:0x3c]) == "ARM\x64":
		release, err := bannerRelease(c)
		return image{release, "arm64"}, err
	case string(hdr[:2]) == "MZ" && string(hdr[4:8]) == "zimg":
		return image{}, fmt.Errorf("%w: a compressed EFI image; want the Image inside of it", ErrFormat)
	case string(hdr[:4]) == "\x7fELF":
		return image{}, fmt.Errorf("%w: an ELF file; want the bzImage (x86) or Image (arm64) made from it", ErrFormat)
	}
	return image{}, fmt.Errorf("%w: begins with %x", ErrFormat, hdr[:8])
}

func bzImageRelease(c tree.Content, hdr []byte) (string, error) {
	off := int64(binary.LittleEndian.Uint16(hdr[0x20e:]))
	if off == 0 {
		return "", nil
	}
	setup := int64(hdr[0x1f1])
	if setup == 0 {
		setup = 4
	}
	text := make([]byte, 256)
	n, err := c.ReadAt(text, off+0x200)
	if err != nil && err != io.EOF {
		return "", err
	}
	text, _, ok := bytes.Cut(text[:n], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if off >= setup*0x200 || !ok || !validRelease(release) {
		return "", fmt.Errorf("%w: bad version string at byte %d", ErrFormat, off+0x200)
	}
	return release, nil
}

// bannerRelease looks for "Linux version RELEASE ", which the kernel prints
// first when it boots.
func bannerRelease(c tree.Content) (string, error) {
	banner := []byte("Linux version ")
	const longest = 128 // of a banner with the release
	buf := make([]byte, 1<<20)
	for off := int64(0); off < c.Size(); off += int64(len(buf)) - longest {
		n, err := c.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		for b := buf[:n]; ; {
			_, after, ok := bytes.Cut(b, banner)
			if !ok {
				break
			}
			b = after
			release, _, ok := strings.Cut(string(after[:min(len(after), longest-len(banner))]), " ")
			if ok && release != "" && release[0] >= '0' && release[0] <= '9' && validRelease(release) {
				return release, nil
			}
		}
	}
	return "", nil
}

// validRelease says whether s can be a kernel's release: a file name of at most
// 64 printable bytes, as struct utsname holds.
func validRelease(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '/' {
			return false
		}
	}
	return true
}
