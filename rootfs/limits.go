package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// ErrTooLarge is wrapped by the errors of CheckSize.
var ErrTooLarge = errors.New("too large")

// Limits are what the results of a recipe must not exceed. 0 is no limit.
type Limits struct {
	Squashfs int64 `yaml:"squashfs"` // bytes of the compressed file tree, with kernel modules
}

// Share is what a part of a file tree contributes to its size.
type Share struct {
	Path  string // with the first three names only: usr/bin/x, usr/lib/modules
	Bytes int64  // of contents, before compression
}

func (s Share) String() string { return fmt.Sprintf("/%s %.1f MB", s.Path, float64(s.Bytes)/1e6) }

// Largest returns the n parts of t that contribute most to its size, the largest
// first.
func Largest(t *tree.Tree, n int) []Share {
	sizes := map[string]int64{}
	seen := map[*tree.Inode]bool{}
	for name, ino := range t.All() {
		if ino.Content == nil || seen[ino] {
			continue
		}
		seen[ino] = true
		parts := strings.SplitN(name, "/", 4)
		sizes[strings.Join(parts[:min(len(parts), 3)], "/")] += ino.Size()
	}
	shares := make([]Share, 0, len(sizes))
	for p, size := range sizes {
		shares = append(shares, Share{p, size})
	}
	slices.SortFunc(shares, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Path, b.Path))
	})
	return shares[:min(n, len(shares))]
}

// CheckSize says whether t, which takes so many bytes as a squashfs, is within
// the recipe's limits.
func (r *Recipe) CheckSize(t *tree.Tree, squashfs int64) error {
	if r.Limits.Squashfs == 0 || squashfs <= r.Limits.Squashfs {
		return nil
	}
	var parts []string
	for _, s := range Largest(t, 5) {
		parts = append(parts, s.String())
	}
	return fmt.Errorf("%w: %.1f MB as squashfs, and limits.squashfs in %s is %.1f MB; before compression the largest are %s",
		ErrTooLarge, float64(squashfs)/1e6, r.path, float64(r.Limits.Squashfs)/1e6, strings.Join(parts, ", "))
}
