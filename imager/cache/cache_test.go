package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestGet(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "sub", "cache"))
	builds := 0
	get := func() (Entry, bool) {
		t.Helper()
		e, hit, err := d.Get(t.Context(), "abc", func(_ context.Context, f *os.File) error {
			builds++
			_, err := f.WriteString("content")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return e, hit
	}
	if e, hit := get(); hit || e.Content.Size() != 7 || e.SHA256 != "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73" {
		t.Errorf("first Get = %+v, %v", e, hit)
	}
	if _, hit := get(); !hit || builds != 1 {
		t.Errorf("second Get: hit %v, %d builds", hit, builds)
	}
	if err := os.WriteFile(d.path("abc", ".bin"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if e, hit := get(); hit || builds != 2 || e.Content.Size() != 7 {
		t.Errorf("Get of a damaged entry: hit %v, %d builds", hit, builds)
	}
}

func TestGetFails(t *testing.T) {
	d := Dir(t.TempDir())
	boom := errors.New("boom")
	if _, _, err := d.Get(t.Context(), "k", func(context.Context, *os.File) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(string(d)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
