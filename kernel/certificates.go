package kernel

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxImage bounds a kernel's image, compressed and not.
const maxImage = 512 << 20

// Certificates returns the X.509 certificates in the kernel's image, in the
// image's order: those of the keyring .builtin_trusted_keys, which the kernel
// takes signatures of modules from. They are in no section of their own, and
// what looks like a certificate is one.
//
// The payload of a bzImage is found by its header
// (Documentation/arch/x86/boot.rst, protocol 2.08):
//
//	0x1f1 u8   setup sectors; the protected-mode code follows them
//	0x248 u32  offset of the payload in the protected-mode code
//	0x24c u32  length of the payload: a compressed ELF file and its size (u32)
func (p *Package) Certificates() ([]*x509.Certificate, error) {
	if p.Vmlinuz.Size() > maxImage {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrFormat, p.Vmlinuz.Size(), maxImage)
	}
	data, err := readAll(p.Vmlinuz)
	if err != nil {
		return nil, err
	}
	if p.Arch == "amd64" {
		if data, err = bzImagePayload(data); err != nil {
			return nil, err
		}
	}
	return certificates(data), nil
}

func readAll(c tree.Content) ([]byte, error) {
	data := make([]byte, c.Size())
	if _, err := io.ReadFull(io.NewSectionReader(c, 0, c.Size()), data); err != nil {
		return nil, err
	}
	return data, nil
}

func bzImagePayload(data []byte) ([]byte, error) {
	if len(data) < 0x250 {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(data))
	}
	le := binary.LittleEndian
	start := (uint64(data[0x1f1])+1)*512 + uint64(le.Uint32(data[0x248:]))
	length := uint64(le.Uint32(data[0x24c:]))
	if length < 4 || start+length > uint64(len(data)) {
		return nil, fmt.Errorf("%w: payload of %d bytes at %d in an image of %d", ErrFormat, length, start, len(data))
	}
	payload := data[start : start+length-4]
	if bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return unzstd(payload)
	}
	plain, err := module.Decompress("vmlinux", payload, maxImage)
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrFormat, err)
	}
	return plain, nil
}

// unzstd decompresses a zstd payload, whose window is larger than a module's.
func unzstd(payload []byte) ([]byte, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(maxImage), zstd.WithDecoderMaxMemory(maxImage), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain, err := z.DecodeAll(payload, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: payload: %w", ErrFormat, err)
	}
	return plain, nil
}

// certificates finds DER certificates: a SEQUENCE that begins with a SEQUENCE,
// both with a length of two bytes, and can be parsed.
func certificates(data []byte) []*x509.Certificate {
	var found []*x509.Certificate
	seen := map[string]bool{}
	for off := 0; ; {
		i := bytes.Index(data[off:], []byte{0x30, 0x82})
		if i < 0 || len(data)-off-i < 8 {
			return found
		}
		off += i
		size := 4 + int(binary.BigEndian.Uint16(data[off+2:]))
		if data[off+4] != 0x30 || data[off+5] != 0x82 || size > len(data)-off {
			off += 2
			continue
		}
		cert, err := x509.ParseCertificate(data[off : off+size])
		if err != nil {
			off += 2
			continue
		}
		if !seen[string(cert.Raw)] {
			found = append(found, cert)
		}
		seen[string(cert.Raw)] = true
		off += size
	}
}
