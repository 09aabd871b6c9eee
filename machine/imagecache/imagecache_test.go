package imagecache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	if _, err := Read(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want %v", err, fs.ErrNotExist)
	}
	r := &Report{Error: "no index", Images: []Image{{Name: "a:1", State: Imported}, {Name: "b:1", State: Failed, Error: "one\ntwo"}, {Name: "c:1", State: Imported}}}
	if err := Write(file, r); err != nil {
		t.Fatal(err)
	}
	got, err := Read(file)
	if err != nil || got.Count(Imported) != 2 || got.Count(Kept) != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if faults := got.Faults(); !slices.Equal(faults, []string{"no index", "b:1: one; two"}) {
		t.Errorf("%q", faults)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file); err == nil || !strings.HasPrefix(err.Error(), "report.json: ") {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
