package main

import (
	"github.com/spf13/pflag"

	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/rootfs"
)

// recipeFlags are a recipe and where what it names is found.
type recipeFlags struct {
	file, goDir, cache string
	packages, trees    []string
}

// add adds all flags but the recipe's own.
func (f *recipeFlags) add(s *pflag.FlagSet) {
	s.StringArrayVar(&f.packages, "packages", nil, "directory with .deb files (repeatable)")
	s.StringArrayVar(&f.trees, "tree", nil, "directory in which the recipe's prebuilt trees and sysroots are (repeatable)")
	s.StringVar(&f.goDir, "go-dir", ".", "Go module in which the recipe's programs are")
	s.StringVar(&f.cache, "cache", "", "directory of the cache of built programs and compressed layers (default: kiln in the user's cache directory)")
}

// sources returns them for what has the version and times given. The caller must
// call done when it has used what is made of them.
func (f *recipeFlags) sources(version string, when int64, r *progress.Reporter) (src rootfs.Sources, done func(), err error) {
	cache, done, err := cacheDir(f.cache)
	return rootfs.Sources{
		Version: version, ModTime: when, PackageDirs: f.packages, TreeDirs: f.trees, GoDir: f.goDir, Cache: cache, Log: r.Logger(),
	}, done, err
}
