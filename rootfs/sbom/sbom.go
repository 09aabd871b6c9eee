// Package sbom says what a root file system is made of, in the words of SPDX 2.3
// (ISO/IEC 5962): a JSON document with one package for each Debian package, Go
// module or system extension, and the relationship "DESCRIBES" to each of them.
//
// Packages are named by package URLs where there is a kind for them:
// pkg:deb/debian/musl@1.2.3-1?arch=amd64, pkg:golang/golang.org/x/sys@v0.49.0.
package sbom

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// ErrFormat is wrapped by the errors of Parse.
var ErrFormat = errors.New("not an SPDX 2.3 document")

// Package is something that was put in.
type Package struct {
	Name    string
	Version string
	License string // SPDX expression, as declared; empty if nobody said
	PURL    string // package URL; may be empty
	SHA256  string // lower-case hexadecimal, of what it came as; may be empty
	Comment string
}

// Deb is a package of a Debian distribution.
func Deb(name, version, arch string) Package {
	return Package{Name: name, Version: version, PURL: "pkg:deb/debian/" + name + "@" + url.QueryEscape(version) + "?arch=" + arch}
}

// GoModule is a Go module.
func GoModule(path, version string) Package {
	return Package{Name: path, Version: version, PURL: "pkg:golang/" + strings.ToLower(path) + "@" + url.QueryEscape(version)}
}

// Document lists packages.
type Document struct {
	Name     string // of what is described
	ID       string // identifies the document and its version: a digest of what is described
	Created  int64  // seconds since 1970
	Tool     string // that made it, with its version: "kiln-1.0"
	Packages []Package
}

// The JSON of a document, as far as it is written here.
type (
	spdxDocument struct {
		SPDXVersion       string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		SPDXID            string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		SPDXID           string         `json:"SPDXID"`
		Name             string         `json:"name"`
		VersionInfo      string         `json:"versionInfo,omitempty"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		LicenseConcluded string         `json:"licenseConcluded"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		CopyrightText    string         `json:"copyrightText"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
		Comment          string         `json:"comment,omitempty"`
	}
	spdxChecksum struct {
		Algorithm     string `json:"algorithm"`
		ChecksumValue string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Related string `json:"relatedSpdxElement"`
		Type    string `json:"relationshipType"`
	}
)

const (
	noAssertion = "NOASSERTION"
	documentID  = "SPDXRef-DOCUMENT"
	// A namespace has to be a URI; nothing has to be found at it.
	namespace = "urn:kiln:sbom:"
)

// Encode returns the document as JSON, packages sorted and each once.
func (d *Document) Encode() ([]byte, error) {
	out := spdxDocument{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: documentID, Name: d.Name, DocumentNamespace: namespace + d.ID,
		CreationInfo:  spdxCreation{Created: time.Unix(d.Created, 0).UTC().Format(time.RFC3339), Creators: []string{"Tool: " + d.Tool}},
		Packages:      []spdxPackage{},
		Relationships: []spdxRelationship{},
	}
	packages := slices.Clone(d.Packages)
	slices.SortFunc(packages, func(a, b Package) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version), strings.Compare(a.PURL, b.PURL),
			strings.Compare(a.SHA256, b.SHA256), strings.Compare(a.Comment, b.Comment), strings.Compare(a.License, b.License))
	})
	for i, p := range slices.Compact(packages) {
		s := spdxPackage{
			SPDXID: fmt.Sprintf("SPDXRef-%d-%s", i+1, identifier(p.Name)), Name: p.Name, VersionInfo: p.Version, DownloadLocation: noAssertion,
			LicenseConcluded: noAssertion, LicenseDeclared: cmp.Or(p.License, noAssertion), CopyrightText: noAssertion, Comment: p.Comment,
		}
		if p.PURL != "" {
			s.ExternalRefs = []spdxRef{{"PACKAGE-MANAGER", "purl", p.PURL}}
		}
		if p.SHA256 != "" {
			s.Checksums = []spdxChecksum{{"SHA256", p.SHA256}}
		}
		out.Packages = append(out.Packages, s)
		out.Relationships = append(out.Relationships, spdxRelationship{documentID, s.SPDXID, "DESCRIBES"})
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// identifier makes a part of an SPDX identifier: letters, digits, '.' and '-'.
func identifier(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s)
}

// Parse reads the packages of a document back.
func Parse(data []byte) (*Document, error) {
	var in spdxDocument
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if in.SPDXVersion != "SPDX-2.3" {
		return nil, fmt.Errorf("%w: spdxVersion %.40q", ErrFormat, in.SPDXVersion)
	}
	d := &Document{Name: in.Name, ID: strings.TrimPrefix(in.DocumentNamespace, namespace)}
	if when, err := time.Parse(time.RFC3339, in.CreationInfo.Created); err == nil {
		d.Created = when.Unix()
	}
	for _, c := range in.CreationInfo.Creators {
		if tool, ok := strings.CutPrefix(c, "Tool: "); ok {
			d.Tool = tool
		}
	}
	for _, s := range in.Packages {
		p := Package{Name: s.Name, Version: s.VersionInfo, Comment: s.Comment}
		if s.LicenseDeclared != noAssertion {
			p.License = s.LicenseDeclared
		}
		for _, r := range s.ExternalRefs {
			if r.Type == "purl" {
				p.PURL = r.Locator
			}
		}
		for _, c := range s.Checksums {
			if _, err := hex.DecodeString(c.ChecksumValue); err == nil && c.Algorithm == "SHA256" {
				p.SHA256 = c.ChecksumValue
			}
		}
		d.Packages = append(d.Packages, p)
	}
	return d, nil
}
