// Package imagecache is what the programs of a node tell each other of the
// container images that its disk or its medium came with: an OCI image layout,
// which is brought into containerd at the start. What became of each image is in a
// report, a file of JSON.
package imagecache

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// What became of an image.
const (
	Imported = "imported"
	Present  = "present" // it was there
	Kept     = "kept"    // another one was there under its name, which the node got by itself
	Failed   = "failed"
)

// Image is one image of the cache.
type Image struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // sha256:…
	State  string `json:"state"`
	Error  string `json:"error,omitempty"` // why it failed
}

// Report says what became of all images, or why nothing did.
type Report struct {
	Images []Image `json:"images"`
	Error  string  `json:"error,omitempty"`
}

// maxReport bounds a report, in bytes.
const maxReport = 16 << 20

// Write replaces the report in a file.
func Write(file string, r *Report) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	temporary := file + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}

// Read reads the report in a file.
func Read(file string) (*Report, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxReport+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxReport {
		return nil, fmt.Errorf("%s: more than %d bytes", filepath.Base(file), maxReport)
	}
	r := new(Report)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
	}
	return r, nil
}

// Count returns how many images are in a state.
func (r *Report) Count(state string) int {
	n := 0
	for _, i := range r.Images {
		if i.State == state {
			n++
		}
	}
	return n
}

// Faults are lines for people about what is not as it should be.
func (r *Report) Faults() []string {
	var lines []string
	if r.Error != "" {
		lines = append(lines, r.Error)
	}
	for _, i := range r.Images {
		if i.State == Failed {
			lines = append(lines, i.Name+": "+strings.ReplaceAll(i.Error, "\n", "; "))
		}
	}
	return lines
}
