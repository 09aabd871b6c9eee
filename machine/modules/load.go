//go:build linux

package modules

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/kernel/modalias"
	"github.com/kilnhq/kiln/machine/kmsg"
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
// goroutines, and next to other processes that load modules.
type Loader struct {
	// ApplyBlacklist extends the blacklist to modules that are called by their
	// names.
	ApplyBlacklist bool

	mu      sync.Mutex
	index   *Index
	config  *Config
	dir     string
	reports map[string]Report
	order   []string // names in reports, in the order they came

	// load is finit_module, state asks sysfs, and kernelLog reads what the
	// kernel said since it was last asked; tests put their own here.
	load      func(file, parameters string) error
	state     func(name string) string
	kernelLog func() []kmsg.Record
}

// Open returns a Loader for the modules directory dir. The config may be nil.
func Open(dir string, config *Config) (*Loader, error) {
	index, err := ReadIndex(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	index.config = config
	return &Loader{index: index, config: config, dir: dir, reports: map[string]Report{},
		load: finit, state: initState, kernelLog: openLog()}, nil
}

// openLog opens the kernel's log. Without it, reasons are shorter.
func openLog() func() []kmsg.Record {
	log, err := kmsg.Open("/dev/kmsg")
	if err != nil {
		return func() []kmsg.Record { return nil }
	}
	return log.Read
}

// initState returns "live", "coming" or "going", or "" for a module that is not
// in the kernel. Modules that are built in have a directory in sysfs too, but no
// initstate.
func initState(name string) string {
	state, err := os.ReadFile("/sys/module/" + name + "/initstate")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(state))
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
	if err := unix.FinitModule(int(f.Fd()), parameters, flags); err != nil {
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
		if errors.Is(err, ErrNotFound) {
			l.report(Report{Name: modalias.Fold(name), State: Failed, Reason: "there is no module or alias of that name"})
		}
		return err
	}
	if len(names) == 0 {
		l.report(Report{Name: modalias.Fold(name), State: Builtin})
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
		// What failed once is not tried again for every device.
		if _, again := l.reports[n]; again || l.blacklisted(n) || l.state(n) == live {
			continue
		}
		if err := l.one(n, "", nil); err != nil {
			errs = append(errs, err)
			continue
		}
		loaded = append(loaded, n)
	}
	return loaded, errors.Join(errs...)
}

// blacklisted reports whether the module is to be left alone, and notes it.
func (l *Loader) blacklisted(name string) bool {
	why := l.config.blacklisted(name)
	if _, known := l.reports[name]; why != "" && !known {
		l.report(Report{Name: name, State: Skipped, Reason: why, File: l.File(name)})
	}
	return why != ""
}

// all loads every module of an alias. One that works is enough: of the
// providers of an algorithm most refuse the processor they run on.
func (l *Loader) all(name string, names []string, parameters string) error {
	var errs []error
	ok := len(names) == 0
	for _, n := range names {
		if (l.ApplyBlacklist || n != modalias.Fold(name)) && l.blacklisted(n) {
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
	if slices.Contains(above, name) || l.reports[name].State == Loaded {
		return nil
	}
	r := Report{Name: name, State: Loaded, File: l.File(name)}
	if l.state(name) == live {
		r.Before = true
		l.report(r)
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
	soft := l.index.softdeps(name)
	l.soft(soft.pre, above)
	for i := len(m.Deps) - 1; i >= 0; i-- {
		if err := l.one(modalias.Name(m.Deps[i]), "", above); err != nil {
			r.State, r.Reason = stateOf(err), "needs "+err.Error()
			l.report(r)
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	r.Parameters = strings.TrimSpace(l.config.Parameters(name) + " " + parameters)
	remark, err := l.insert(name, r.File, r.Parameters)
	if err != nil {
		r.State, r.Reason = err.State, err.Reason
		l.report(r)
		return err
	}
	r.Reason = remark
	l.report(r)
	l.soft(soft.post, above)
	return nil
}

// stateOf returns Skipped or Failed.
func stateOf(err error) State {
	var e *Error
	if errors.As(err, &e) {
		return e.State
	}
	return Failed
}

// live is the state of a module that is in the kernel and initialised.
const live = "live"

// patience is how long another process may take to load the same module.
const patience = 30 * time.Second

// insert hands a module to the kernel. The remark is what was odd about it.
func (l *Loader) insert(name, file, parameters string) (remark string, failure *Error) {
	l.kernelLog()
	err := l.load(file, parameters)
	said := l.kernelLog()
	if errors.Is(err, unix.EEXIST) && l.settle(name) {
		// Somebody else loaded it at the same time, the kernel's modprobe perhaps.
		return "", nil
	}
	if err != nil {
		return "", explain(name, err, said)
	}
	return remarks(name, said), nil
}

// settle waits until a module that another process loads is live, and reports
// whether it is. A kernel that answers EEXIST has waited itself, but older ones
// answer at once.
func (l *Loader) settle(name string) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		switch state := l.state(name); {
		case state == live:
			return true
		case state == "" || time.Now().After(deadline):
			return false
		}
	}
}

// soft loads soft dependencies, as far as they are there: the module decides
// whether it can do without. Those behind an alias can be blacklisted.
func (l *Loader) soft(names, above []string) {
	for _, s := range names {
		resolved, err := l.index.Resolve(s)
		if err != nil {
			continue
		}
		for _, n := range resolved {
			if n != s && l.blacklisted(n) {
				continue
			}
			_ = l.one(n, "", above)
		}
	}
}

// File returns the path of the module's file, or "" if there is none.
func (l *Loader) File(name string) string {
	m, ok := l.index.Lookup(name)
	if !ok {
		return ""
	}
	return filepath.Join(l.dir, m.File)
}

func (l *Loader) report(r Report) {
	if _, known := l.reports[r.Name]; !known {
		l.order = append(l.order, r.Name)
	}
	l.reports[r.Name] = r
}

// Reports returns what became of the modules that the Loader was to load, in the
// order it came to them.
func (l *Loader) Reports() []Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Report, 0, len(l.order))
	for _, name := range l.order {
		all = append(all, l.reports[name])
	}
	return all
}

// Give sets parameters of modules, by their names, besides those of the configuration
// and before those of the kernel command line. They take the place of what was given
// before.
func (l *Loader) Give(parameters map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.config == nil {
		l.config = &Config{}
		l.index.config = l.config
	}
	l.config.given = map[string]string{}
	for name, p := range parameters {
		l.config.given[modalias.Fold(name)] = strings.TrimSpace(p)
	}
}

// Parameters returns those that the module would be loaded with.
func (l *Loader) Parameters(name string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config.Parameters(name)
}

// Resolve returns the modules that the name or alias stands for, as Index.Resolve does.
func (l *Loader) Resolve(name string) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.Resolve(name)
}

// Index returns the index the loader works with.
func (l *Loader) Index() *Index { return l.index }
