package imager

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// SourceFile is the file of a source directory that says what is in it.
const SourceFile = "source.json"

// SourceVariable is the environment variable with the source directory of an
// installer image.
const SourceVariable = "KILN_SOURCE"

// Source is what an installer or ISO image installs: the inputs of Compose, as files in
// a directory, by paths that are relative to it.
type Source struct {
	Version      int      `json:"version"` // of this format: 1
	Kiln         string   `json:"kiln"`    // version of the tool that made it
	Profile      string   `json:"profile"`
	Base         string   `json:"base"`
	Extensions   []string `json:"extensions"` // lowest layer first
	KernelArgs   []string `json:"kernelArgs"`
	Certificates []string `json:"certificates,omitempty"` // PEM
	Cache        string   `json:"cache"`
	ImageCache   string   `json:"imageCache,omitempty"` // OCI image layout
	Strict       bool     `json:"strict"`
	Epoch        int64    `json:"epoch"` // seconds since 1970
}

// OpenSource reads what is in a source directory. The paths in the result begin
// with dir.
func OpenSource(dir string) (*Source, error) {
	name := filepath.Join(dir, SourceFile)
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("installer: %w", err)
	}
	var s Source
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, refuse("%s: %v", name, err)
	}
	if s.Version != 1 {
		return nil, refuse("%s: version %d, want 1", name, s.Version)
	}
	for _, p := range []*string{&s.Profile, &s.Base, &s.Cache} {
		*p = filepath.Join(dir, *p)
	}
	if s.ImageCache != "" {
		s.ImageCache = filepath.Join(dir, s.ImageCache)
	}
	for _, list := range [][]string{s.Extensions, s.Certificates} {
		for i := range list {
			list[i] = filepath.Join(dir, list[i])
		}
	}
	return &s, nil
}
