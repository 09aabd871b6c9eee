package uki

import (
	"fmt"
	"io"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
)

// Image is a PE file that has been read.
type Image struct {
	// Arch is "amd64" or "arm64", as GOARCH, or a text that gives the number of
	// the machine.
	Arch string
	// Sections are in the order of the section table, those of the stub first.
	Sections []ImageSection
	// Signed says that the file carries an Authenticode signature. It says
	// nothing about whether the signature is right.
	Signed bool
}

// ImageSection is a section as it lies in a file.
type ImageSection struct {
	Section
	Offset  int64  // of the content in the file
	Address uint32 // of the content in memory, from the base of the image
}

// Read lists the sections of the PE32+ file of size bytes in r. Contents stay
// where they are; r must remain readable as long as they are used, and be safe
// for concurrent use. Of the contents only .sdmagic may have been looked at.
func Read(r io.ReaderAt, size int64) (*Image, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	_, signature := h.directory(dirSecurity)
	m := &Image{Arch: arch(h.machine()), Signed: signature > 0}
	file := source{r, size}
	for _, s := range h.sections {
		// What is beyond the virtual size is padding; what is beyond the raw
		// size is zeros that are not in the file.
		n := min(s.rawSize, s.virtualSize)
		content, err := extent.Section(file, int64(s.rawOffset), int64(n))
		if err != nil {
			return nil, fmt.Errorf("%w: section %s: %w", ErrFormat, s.name, err)
		}
		m.Sections = append(m.Sections, ImageSection{
			Section: Section{Name: s.name, Content: content},
			Offset:  int64(s.rawOffset),
			Address: s.virtualAddress,
		})
	}
	return m, nil
}

// Section returns the first section of that name, or nil. In an image with
// several profiles that is the one of the default profile.
func (m *Image) Section(name string) *ImageSection {
	for i := range m.Sections {
		if m.Sections[i].Name == name {
			return &m.Sections[i]
		}
	}
	return nil
}

// LoaderInfo returns what systemd's boot programs say of themselves in their
// section .sdmagic, such as "systemd-stub 257.13-1", or "".
func (m *Image) LoaderInfo() string {
	s := m.Section(".sdmagic")
	if s == nil || s.Content.Size() > 1024 {
		return ""
	}
	b := make([]byte, s.Content.Size())
	if readFull(s.Content, b, 0) != nil {
		return ""
	}
	// #### LoaderInfo: systemd-stub 257.13-1 ####
	_, info, ok := strings.Cut(string(b), "LoaderInfo: ")
	if !ok {
		return ""
	}
	info, _, _ = strings.Cut(info, " ####")
	return strings.ToValidUTF8(info, "?")
}

// source makes a file of known size of a reader.
type source struct {
	io.ReaderAt
	size int64
}

func (s source) Size() int64 { return s.size }
