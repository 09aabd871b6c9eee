package extensions

import (
	"errors"
	"path"
	"strings"
)

// Limits bound what is read of an extension, and from where.
type Limits struct {
	Entries  int      // names, in an archive and unpacked; 0 is 1,000,000
	Bytes    int64    // file contents, unpacked, holes included; 0 is 4 GiB
	Paths    []string // what may be in a root file system; nil is AllowedPaths
	Insecure []string // registries, HOST or HOST:PORT, that may be asked over plain HTTP
}

// ErrHostile is wrapped by errors for content that tries to leave its root,
// exceeds a limit or has no place in an extension.
var ErrHostile = errors.New("refused")

// Bounds that nobody has needed to change.
const (
	maxManifest = 1 << 20   // bytes of manifest.yaml
	maxJSON     = 4 << 20   // bytes of an OCI index, manifest or configuration
	maxLayers   = 512       // of an image
	maxXattrs   = 64 << 10  // bytes of names and values of a file's extended attributes
	maxMetadata = 256 << 20 // bytes of names, link targets and extended attributes
	maxTarget   = 4095      // bytes of a symbolic link's target, PATH_MAX
)

// AllowedPaths returns the paths below which an extension may have files. The
// root file system is read-only musl; configuration in /etc, state in /var and
// what belongs to a running system are the node's.
func AllowedPaths() []string {
	return []string{
		"etc/cri/conf.d", "etc/ld.so.cache", "etc/ld.so.conf", "etc/vulkan", "opt",
		"usr/bin", "usr/lib", "usr/libexec", "usr/local", "usr/sbin", "usr/share",
	}
}

func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 4 << 30
	}
	if l.Paths == nil {
		l.Paths = AllowedPaths()
	}
	paths := make([]string, 0, len(l.Paths))
	for _, p := range l.Paths {
		if p != "" { // what is left of a variable that is not set does not allow everything
			paths = append(paths, path.Clean(strings.TrimPrefix(p, "/")))
		}
	}
	l.Paths = paths
	return l
}

// allowed says whether name may be there: below one of the paths or, if it is a
// directory, on the way to one.
func (l Limits) allowed(name string, dir bool) bool {
	for _, p := range l.Paths {
		if below(name, p) || dir && below(p, name) {
			return true
		}
	}
	return false
}

// below says whether name is dir or inside of it. It compares whole components:
// usr/localfoo is not below usr/local.
func below(name, dir string) bool {
	rest, ok := strings.CutPrefix(name, dir)
	return dir == "." || ok && (rest == "" || rest[0] == '/')
}
