package sbom

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func TestEncode(t *testing.T) {
	d := Document{Name: "base", ID: "1f", Created: 1700000000, Tool: "kiln-1.0", Packages: []Package{
		GoModule("golang.org/x/Sys", "v0.49.0"), Deb("musl", "1.2.3-1~x+y", "amd64"), Deb("musl", "1.2.3-1~x+y", "amd64"),
		{Name: "zfs", Version: "2", License: "CDDL-1.0", SHA256: strings.Repeat("0a", 32), Comment: "extension"},
	}}
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		SPDXVersion       string
		DocumentNamespace string
		CreationInfo      struct{ Created string }
		Packages          []struct{ SPDXID, Name string }
		Relationships     []struct{ RelatedSpdxElement, RelationshipType string }
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.SPDXVersion != "SPDX-2.3" || got.DocumentNamespace != "urn:kiln:sbom:1f" || got.CreationInfo.Created != "2023-11-14T22:13:20Z" ||
		len(got.Packages) != 3 || len(got.Relationships) != 3 || got.Packages[0].SPDXID != "SPDXRef-1-golang.org-x-Sys" ||
		got.Relationships[2].RelatedSpdxElement != "SPDXRef-3-zfs" || got.Relationships[2].RelationshipType != "DESCRIBES" {
		t.Errorf("%s", data)
	}
	for _, want := range []string{"pkg:golang/golang.org/x/sys@v0.49.0", "pkg:deb/debian/musl@1.2.3-1~x%2By?arch=amd64", `"licenseDeclared": "CDDL-1.0"`, `"NOASSERTION"`} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("no %s in\n%s", want, data)
		}
	}
	back, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.Encode()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("read back: %v\n%s", err, again)
	}
	if _, err := Parse([]byte(`{"spdxVersion":"SPDX-3.0"}`)); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), `spdxVersion "SPDX-3.0"`) {
		t.Errorf("version: %v", err)
	}
}

func TestScan(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := extent.File(self)
	if err != nil {
		t.Fatal(err)
	}
	tr := tree.New()
	for name, content := range map[string]tree.Content{
		"usr/bin/test":                      program,
		"usr/bin/script":                    strings.NewReader("#!/bin/sh\n"),
		"usr/share/doc/e2fsprogs/copyright": strings.NewReader("Package: e2fsprogs\nVersion: 1.47.0-2\nBuilt-Using: musl 1.2.3 (MIT)\n\nText: more\n"),
		"usr/share/doc/other/copyright":     strings.NewReader("Copyright: somebody\n"),
	} {
		if err := tr.MkdirAll(name[:strings.LastIndexByte(name, '/')], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := tr.Add(name, &tree.Inode{Mode: 0o755, Content: content}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Scan(t.Context(), tr)
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string) Package {
		i := slices.IndexFunc(got, func(p Package) bool { return p.Name == name })
		if i < 0 {
			t.Fatalf("no package %s in %+v", name, got)
		}
		return got[i]
	}
	if p := find("e2fsprogs"); p.Version != "1.47.0-2" || p.Comment != "built using musl 1.2.3 (MIT)" {
		t.Errorf("%+v", p)
	}
	if p := find("stdlib"); p.Version == "" || p.Comment != "Go's standard library, in /usr/bin/test" {
		t.Errorf("%+v", p)
	}
	if slices.ContainsFunc(got, func(p Package) bool { return p.Name == "other" }) {
		t.Errorf("%+v", got)
	}
}

func FuzzParse(f *testing.F) {
	d := Document{Name: "x", Packages: []Package{Deb("musl", "1", "amd64")}}
	data, err := d.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := Parse(data); err == nil {
			if _, err := d.Encode(); err != nil {
				t.Error(err)
			}
		}
	})
}
