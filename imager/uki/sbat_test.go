package uki

import (
	"bytes"
	"debug/pe"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
)

// The image has one section .sbat, with the lines of the stub and the new ones.
func TestSBAT(t *testing.T) {
	stub := readStub(t)
	const line = "kiln,1,kiln,kiln,1.2,x\n"
	sections := append([]Section{{".sbat", extent.Bytes([]byte(line))}}, typical(t)...)
	image := build(t, stub, sections)
	before, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		t.Fatal(err)
	}
	after, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	var found [][]byte
	for _, s := range after.Sections {
		if s.Name != ".sbat" {
			continue
		}
		data, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, data[:s.VirtualSize])
	}
	data, err := before.Section(".sbat").Data()
	if err != nil {
		t.Fatal(err)
	}
	want := string(bytes.TrimRight(data, "\x00")) + line
	if len(found) != 1 || string(found[0]) != want {
		t.Errorf("found %q, want %q", found, want)
	}
	if !bytes.Equal(stub, readStub(t)) {
		t.Error("the stub has changed")
	}
	plain := build(t, stub, typical(t))
	if len(plain) != len(image) {
		t.Errorf("%d bytes, without the lines %d", len(image), len(plain))
	}
}

// The contents of appended sections begin on pages of the file.
func TestAlignment(t *testing.T) {
	image := build(t, readStub(t), typical(t))
	m, err := Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".linux", ".initrd"} {
		if at := m.Section(name).Offset; at%pageSize != 0 {
			t.Errorf("%s begins at %d", name, at)
		}
	}
}
