package ova

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vmdk"
)

// Bounds of what is read.
const (
	maxFiles = 256
	maxText  = 4 << 20
)

// Appliance is an OVA file that has been opened.
type Appliance struct {
	Descriptor []byte      // the OVF text
	DiskName   string      // of the file in the archive
	Disk       *extent.Map // the disk of the machine

	name    string // of the descriptor
	files   map[string]*extent.Map
	digests []digest
}

// digest is a line of the manifest.
type digest struct {
	name      string
	algorithm string
	sum       []byte
}

// Open opens an OVA file of a machine with one disk, a VMDK. The descriptor is
// compared with its digest, if there is a manifest; Verify does that for the
// other files, which means to read them.
//
// Files that are compressed or in chunks, disks of other formats and more than
// one disk are refused with ErrUnsupported, archives that are cut off or whose
// files do not fit together with ErrCorrupt.
func Open(src extent.Source) (*Appliance, error) {
	a := &Appliance{files: make(map[string]*extent.Map)}
	manifest, err := a.list(src)
	if err != nil {
		return nil, err
	}
	if a.Descriptor, err = a.text(a.name); err != nil {
		return nil, err
	}
	if manifest != "" {
		text, err := a.text(manifest)
		if err != nil {
			return nil, err
		}
		if err := a.manifest(text); err != nil {
			return nil, err
		}
	}
	for _, d := range a.digests {
		if d.name == a.name {
			if err := a.verify(context.Background(), d); err != nil {
				return nil, err
			}
		}
	}
	if a.DiskName, err = a.findDisk(); err != nil {
		return nil, err
	}
	if a.Disk, err = vmdk.Open(a.files[a.DiskName]); err != nil {
		return nil, fmt.Errorf("%s: %w", a.DiskName, err)
	}
	return a, nil
}

// list finds the files of the archive and returns the name of the manifest.
func (a *Appliance) list(src extent.Source) (manifest string, err error) {
	r := extent.Reader(src)
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return "", fmt.Errorf("%w: %.80q is sparse", ErrUnsupported, name)
			}
		}
		// The reader does not read ahead.
		at, err := r.Seek(0, io.SeekCurrent)
		if err != nil {
			return "", err
		}
		section, err := extent.Section(src, at, h.Size)
		if err != nil {
			return "", fmt.Errorf("%w: %.80q is cut off: %w", ErrCorrupt, name, err)
		}
		if a.files[name] != nil {
			return "", fmt.Errorf("%w: two files %.80q", ErrCorrupt, name)
		}
		if len(a.files) == maxFiles {
			return "", fmt.Errorf("%w: more than %d files", ErrUnsupported, maxFiles)
		}
		content := extent.New(h.Size)
		if err := content.Put(0, section); err != nil {
			return "", err
		}
		a.files[name] = content
		switch {
		case strings.HasSuffix(name, ".ovf"):
			if a.name != "" {
				return "", fmt.Errorf("%w: two descriptors, %.80q and %.80q", ErrCorrupt, a.name, name)
			}
			a.name = name
		case strings.HasSuffix(name, ".mf"):
			manifest = name
		}
	}
	if a.name == "" {
		return "", fmt.Errorf("%w: no descriptor (*.ovf) in it", ErrCorrupt)
	}
	return manifest, nil
}

// text returns the content of a small file.
func (a *Appliance) text(name string) ([]byte, error) {
	f := a.files[name]
	if f.Size() > maxText {
		return nil, fmt.Errorf("%w: %.80q has %d bytes, want at most %d", ErrUnsupported, name, f.Size(), maxText)
	}
	b, err := io.ReadAll(extent.Reader(f))
	if err == nil && int64(len(b)) < f.Size() {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// digestLine is OpenSSL's form of digests; some leave out spaces, some have more.
var digestLine = regexp.MustCompile(`^([A-Za-z0-9-]+) ?\((.+)\) ?= ?([0-9a-fA-F]+)$`)

func (a *Appliance) manifest(text []byte) error {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		m := digestLine.FindSubmatch(line)
		if m == nil {
			return fmt.Errorf("%w: line %.80q of the manifest", ErrCorrupt, line)
		}
		d := digest{name: strings.TrimPrefix(string(m[2]), "./"), algorithm: strings.ReplaceAll(strings.ToUpper(string(m[1])), "-", "")}
		h := d.hash()
		if h == nil {
			return fmt.Errorf("%w: a digest of %.20q in the manifest, want SHA1, SHA256 or SHA512", ErrUnsupported, m[1])
		}
		var err error
		if d.sum, err = hex.DecodeString(string(m[3])); err != nil || len(d.sum) != h.Size() {
			return fmt.Errorf("%w: line %.80q of the manifest", ErrCorrupt, line)
		}
		if a.files[d.name] == nil {
			return fmt.Errorf("%w: the manifest has %.80q, the archive has not", ErrCorrupt, d.name)
		}
		if a.digests = append(a.digests, d); len(a.digests) > maxFiles {
			return fmt.Errorf("%w: more than %d digests", ErrUnsupported, maxFiles)
		}
	}
	return nil
}

func (d digest) hash() hash.Hash {
	switch d.algorithm {
	case "SHA1":
		return sha1.New()
	case "SHA256":
		return sha256.New()
	case "SHA512":
		return sha512.New()
	}
	return nil
}

// Verify compares the files with the digests of the manifest. A descriptor or
// disk without a digest is an error, and so is an archive without a manifest.
func (a *Appliance) Verify(ctx context.Context) error {
	if len(a.digests) == 0 {
		return fmt.Errorf("%w: there is no manifest to verify it with", ErrUnsupported)
	}
	known := make(map[string]bool)
	for _, d := range a.digests {
		if err := a.verify(ctx, d); err != nil {
			return err
		}
		known[d.name] = true
	}
	for _, name := range []string{a.name, a.DiskName} {
		if !known[name] {
			return fmt.Errorf("%w: the manifest does not have %.80q", ErrCorrupt, name)
		}
	}
	return nil
}

func (a *Appliance) verify(ctx context.Context, d digest) error {
	h := d.hash()
	f := a.files[d.name]
	if _, err := f.WriteTo(&stopper{ctx, h}); err != nil {
		return fmt.Errorf("%.80q: %w", d.name, err)
	}
	if got := h.Sum(nil); !bytes.Equal(got, d.sum) {
		return fmt.Errorf("%w: %.80q has %s %x, the manifest has %x", ErrCorrupt, d.name, d.algorithm, got, d.sum)
	}
	return nil
}

// stopper passes writes on until the context ends.
type stopper struct {
	ctx context.Context
	w   io.Writer
}

func (s *stopper) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

// found is what matters of a descriptor, of version 1 or 2, that has been read.
type found struct {
	XMLName xml.Name `xml:"Envelope"`
	Files   []struct {
		Href        string `xml:"href,attr"`
		ID          string `xml:"id,attr"`
		Size        *int64 `xml:"size,attr"`
		Compression string `xml:"compression,attr"`
		ChunkSize   string `xml:"chunkSize,attr"`
	} `xml:"References>File"`
	Disks []struct {
		ID     string `xml:"diskId,attr"`
		File   string `xml:"fileRef,attr"`
		Parent string `xml:"parentRef,attr"`
		Format string `xml:"format,attr"`
	} `xml:"DiskSection>Disk"`
}

// findDisk returns the name of the disk's file.
func (a *Appliance) findDisk() (string, error) {
	var e found
	if err := xml.Unmarshal(a.Descriptor, &e); err != nil {
		return "", fmt.Errorf("%w: descriptor: %w", ErrCorrupt, err)
	}
	if !strings.HasPrefix(e.XMLName.Space, "http://schemas.dmtf.org/ovf/envelope/") {
		return "", fmt.Errorf("%w: descriptor in namespace %.80q, want OVF 1 or 2", ErrUnsupported, e.XMLName.Space)
	}
	name := ""
	for _, d := range e.Disks {
		switch {
		case d.File == "":
			continue // an empty one
		case name != "":
			return "", fmt.Errorf("%w: more than one disk", ErrUnsupported)
		case d.Parent != "":
			return "", fmt.Errorf("%w: disk %.80q has a parent", ErrUnsupported, d.ID)
		case !strings.Contains(d.Format, "vmdk"):
			return "", fmt.Errorf("%w: disk %.80q has format %.120q, want VMDK", ErrUnsupported, d.ID, d.Format)
		}
		for _, f := range e.Files {
			if f.ID != d.File {
				continue
			}
			switch content := a.files[f.Href]; {
			case f.ChunkSize != "":
				return "", fmt.Errorf("%w: %.80q is in chunks", ErrUnsupported, f.Href)
			case f.Compression != "" && f.Compression != "identity":
				return "", fmt.Errorf("%w: %.80q is compressed (%.20q)", ErrUnsupported, f.Href, f.Compression)
			case content == nil:
				return "", fmt.Errorf("%w: %.80q is not in the archive", ErrCorrupt, f.Href)
			case f.Size != nil && *f.Size != content.Size():
				return "", fmt.Errorf("%w: %.80q has %d bytes, the descriptor has %d", ErrCorrupt, f.Href, content.Size(), *f.Size)
			}
			name = f.Href
		}
		if name == "" {
			return "", fmt.Errorf("%w: disk %.80q is in file %.80q, of which nothing is known", ErrCorrupt, d.ID, d.File)
		}
	}
	if name == "" {
		return "", fmt.Errorf("%w: no disk in it", ErrUnsupported)
	}
	return name, nil
}
