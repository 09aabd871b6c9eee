// Package cache keeps files under the digest of what they were made from, so
// that a layer is compressed once.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/atomicfile"
)

// Dir is a cache in a directory, which is made when it is first written to.
// Several processes may use it at once.
type Dir string

// Entry is a file in the cache.
type Entry struct {
	Key     string
	Content *extent.FileSource
	SHA256  string // lower-case hexadecimal
}

// Record returns what a cache has in KEY.json of the content, which is in KEY.bin.
func (e Entry) Record() []byte {
	data, _ := json.Marshal(record{e.SHA256, e.Content.Size()}) // never fails
	return data
}

// record is stored beside each file.
type record struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Get returns the file for key, a hexadecimal digest of everything that its
// content depends on. If it is not there, or is damaged, build makes it. The
// second result says whether it was there.
func (d Dir) Get(ctx context.Context, key string, build func(context.Context, *os.File) error) (Entry, bool, error) {
	if e, ok := d.lookup(key); ok {
		return e, true, nil
	}
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return Entry{}, false, fmt.Errorf("cache: %w; choose another directory with --cache", err)
	}
	f, err := atomicfile.Create(d.path(key, ".bin"), 0o644)
	if err != nil {
		return Entry{}, false, fmt.Errorf("cache: %w; choose another directory with --cache", err)
	}
	defer f.Close()
	if err := build(ctx, f.File); err != nil {
		return Entry{}, false, err
	}
	rec, err := measure(f.File)
	if err != nil {
		return Entry{}, false, err
	}
	if err := f.Commit(); err != nil {
		return Entry{}, false, err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return Entry{}, false, err
	}
	if err := atomicfile.WriteFile(d.path(key, ".json"), data, 0o644); err != nil {
		return Entry{}, false, err
	}
	src, err := extent.File(d.path(key, ".bin"))
	if err != nil {
		return Entry{}, false, err
	}
	return Entry{key, src, rec.SHA256}, false, nil
}

// lookup returns the entry if it is there and its content is what was stored.
func (d Dir) lookup(key string) (Entry, bool) {
	data, err := os.ReadFile(d.path(key, ".json"))
	if err != nil {
		return Entry{}, false
	}
	var want record
	if json.Unmarshal(data, &want) != nil {
		return Entry{}, false
	}
	f, err := os.Open(d.path(key, ".bin"))
	if err != nil {
		return Entry{}, false
	}
	defer f.Close()
	if got, err := measure(f); err != nil || got != want {
		return Entry{}, false
	}
	src, err := extent.File(f.Name())
	return Entry{key, src, want.SHA256}, err == nil
}

func measure(f *os.File) (record, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62))
	return record{hex.EncodeToString(h.Sum(nil)), n}, err
}

func (d Dir) path(key, ext string) string { return filepath.Join(string(d), key+ext) }
