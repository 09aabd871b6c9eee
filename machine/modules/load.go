//go:build linux

package modules

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/kernel/modalias"
)

// Directory returns the modules directory of the given kernel release below
// root. Trees with and without merged /usr are both found.
func Directory(root, release string) string {
	usr := filepath.Join(root, "usr/lib/modules", release)
	if _, err := os.Stat(usr); err == nil {
		return usr
	}
	return filepath.Join(root, "lib/modules", release)
}

// A Loader loads modules with their dependencies. It may be used by several
// goroutines.
type Loader struct {
	mu     sync.Mutex
	index  *Index
	config *Config
	dir    string
	done   map[string]bool // loaded in this run
	failed map[string]bool // not tried again for a mere alias

	// load is finit_module, and loaded asks sysfs; tests put their own here.
	load   func(file, parameters string) error
	loaded func(name string) bool
}

// Open returns a Loader for the modules directory dir. The config may be nil.
func Open(dir string, config *Config) (*Loader, error) {
	index, err := ReadIndex(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Loader{index: index, config: config, dir: dir, done: map[string]bool{}, failed: map[string]bool{}, load: finit, loaded: isLoaded}, nil
}

// isLoaded reports whether a module is in the kernel and initialised. Modules
// that are built in have a directory in sysfs too, but no initstate.
func isLoaded(name string) bool {
	state, err := os.ReadFile("/sys/module/" + name + "/initstate")
	return err == nil && strings.TrimSpace(string(state)) == "live"
}

// finit loads the file. The kernel decompresses it if it was built with
// MODULE_DECOMPRESS for that format.
func finit(file, parameters string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	switch filepath.Ext(file) {
	case ".xz", ".zst", ".gz":
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), parameters, flags); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "finit_module", Path: file, Err: err}
	}
	return nil
}

// Load loads the module called name, or all the modules that name is an alias
// of, with what they depend on. The parameters come after those of the
// configuration. A module that is built in or already there is not an error.
func (l *Loader) Load(name, parameters string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	names, err := l.index.Resolve(name)
	if err != nil {
		return err
	}
	return l.all(name, names, parameters)
}

// LoadAlias loads the modules that match a device's modalias, except those that
// the configuration blacklists. It returns those it loaded. No match is not an
// error: most devices need no driver, or it is built in.
func (l *Loader) LoadAlias(modalias string) (loaded []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.index.aliases == nil {
		if err := l.index.Prepare(); err != nil {
			return nil, err
		}
	}
	names, err := l.index.Aliased(modalias)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, n := range names {
		if l.config.blacklisted(n) || l.done[n] || l.failed[n] || l.loaded(n) {
			continue
		}
		if err := l.one(n, "", nil); err != nil {
			l.failed[n] = true
			errs = append(errs, err)
			continue
		}
		loaded = append(loaded, n)
	}
	return loaded, errors.Join(errs...)
}

// all loads every module of an alias. One that works is enough: of the
// providers of an algorithm most refuse the processor they run on.
func (l *Loader) all(name string, names []string, parameters string) error {
	var errs []error
	ok := len(names) == 0
	for _, n := range names {
		if n != modalias.Fold(name) && l.config.blacklisted(n) {
			continue
		}
		if err := l.one(n, parameters, nil); err != nil {
			errs = append(errs, err)
			continue
		}
		ok = true
	}
	if ok {
		return nil
	}
	return errors.Join(errs...)
}

// one loads a module: first its soft dependencies "pre", then what it depends
// on, then itself, then its soft dependencies "post". Above it are the modules
// that want it, so that a circle of soft dependencies ends.
func (l *Loader) one(name, parameters string, above []string) error {
	for _, a := range above {
		if a == name {
			return nil
		}
	}
	if l.done[name] || l.loaded(name) {
		return nil
	}
	m, ok := l.index.Lookup(name)
	if !ok {
		if l.index.Builtin(name) {
			return nil
		}
		return fmt.Errorf("%s: %w: not in modules.dep", name, ErrNotFound)
	}
	above = append(above, name)
	l.soft(l.index.soft[name].pre, above)
	for i := len(m.Deps) - 1; i >= 0; i-- {
		if err := l.one(modalias.Name(m.Deps[i]), "", above); err != nil {
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	all := strings.TrimSpace(l.config.parameters(name) + " " + parameters)
	if err := l.load(filepath.Join(l.dir, m.File), all); err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	l.done[name] = true
	l.soft(l.index.soft[name].post, above)
	return nil
}

// soft loads soft dependencies, as far as they are there: the module decides
// whether it can do without.
func (l *Loader) soft(names, above []string) {
	for _, s := range names {
		resolved, err := l.index.Resolve(s)
		if err != nil {
			continue
		}
		for _, n := range resolved {
			_ = l.one(n, "", above)
		}
	}
}

// Index returns the index the loader works with.
func (l *Loader) Index() *Index { return l.index }
