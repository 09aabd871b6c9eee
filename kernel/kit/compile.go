package kit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/kernel/kit/dkms"
	"github.com/kilnhq/kiln/kernel/module"
)

// ErrBuild is wrapped by the errors for sources that do not build.
var ErrBuild = errors.New("the module does not build")

// Job is a source to build modules from.
type Job struct {
	// Source is a directory with a Kbuild or Makefile as
	// Documentation/kbuild/modules.rst describes, a directory with a dkms.conf,
	// or a Debian package with one (NAME-dkms_….deb). It is not written to.
	//
	// Building runs the source's makefiles and, with a dkms.conf, the scripts
	// it names, as the user who builds: it takes as much trust as make does.
	Source string

	Output string // directory for the modules and their Module.symvers; made if need be

	// Symvers are files Module.symvers of other modules, whose symbols the
	// source uses.
	Symvers []string

	Kit  string    // directory in which the kit has been extracted; if empty, a temporary one
	Jobs int       // that make runs at once; if 0, the number of CPUs
	Log  io.Writer // for what make and the compiler say; may be nil
}

// Built are the modules that came of a Job.
type Built struct {
	Name    string // of the DKMS package or of the directory
	Version string // of the DKMS package or of the first module that has one; may be empty
	Modules []Module

	Symvers  string   // file with the symbols that the modules export; empty if they export none
	Warnings []string // for the user
}

// Module is a module that has been built.
type Module struct {
	Name string // of the file, without ".ko"
	Path string // of the file; without debug information, neither compressed nor signed
	Dest string // where the source wants it below the kernel's modules: "extra", "kernel/drivers/md"
}

// Compile builds modules for the kit's kernel with kbuild, as unprivileged user
// and in a temporary directory. The same source gives the same modules whatever
// that directory is called: no path, no time and no user gets into them.
func (k *Kit) Compile(ctx context.Context, job Job) (*Built, error) {
	b, err := k.compile(ctx, job)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", job.Source, err)
	}
	return b, nil
}

func (k *Kit) compile(ctx context.Context, job Job) (*Built, error) {
	tools, warnings, err := k.toolchain(ctx)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "kiln-module-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if tmp, err = filepath.EvalSymlinks(tmp); err != nil {
		return nil, err
	}
	b := build{Job: job, config: k.Config, tmp: tmp, tools: tools, result: Built{Warnings: warnings}}
	if b.Kit == "" {
		b.Kit = filepath.Join(tmp, "kit")
		if err := k.Extract(ctx, b.Kit); err != nil {
			return nil, err
		}
	}
	if b.Kit, err = filepath.Abs(b.Kit); err != nil {
		return nil, err
	}
	for _, dir := range []string{tmp, b.Kit} {
		if strings.ContainsAny(dir, " \t\n:$#'\"\\") {
			return nil, fmt.Errorf("%w: make cannot work in %q: choose a TMPDIR without spaces, colons and quotes", ErrBuild, dir)
		}
	}
	if err := b.run(ctx); err != nil {
		return nil, err
	}
	return &b.result, nil
}

// build is a Job being done.
type build struct {
	Job
	config Config
	tmp    string
	tools  toolchain
	src    string       // copy of the source
	output []byte       // of the last command
	conf   *dkms.Config // nil without one
	result Built
}

func (b *build) run(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if b.conf == nil {
		err := b.command(ctx, b.src, nil, "make", "-C", filepath.Join(b.Kit, buildDir), "M="+b.src, "modules")
		if err != nil {
			return b.failure("make", err)
		}
		b.scan()
	} else if err := b.dkms(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(b.Output, 0o755); err != nil {
		return err
	}
	made, err := b.made()
	if err != nil {
		return err
	}
	for _, m := range made {
		if err := b.finish(ctx, m); err != nil {
			return err
		}
	}
	return b.symvers()
}

// dkms builds with the commands of a dkms.conf.
func (b *build) dkms(ctx context.Context) error {
	if err := b.exclusive(); err != nil {
		return err
	}
	if err := b.patch(ctx); err != nil {
		return err
	}
	for _, step := range []string{"pre", "make", "post"} {
		err := b.command(ctx, b.src, b.dkmsEnv(), "bash", "-c", dkms.Commands, "dkms.conf", step)
		if err != nil {
			return b.failure(map[string]string{"pre": "PRE_BUILD", "make": "MAKE", "post": "POST_BUILD"}[step]+" of dkms.conf", err)
		}
		b.scan()
	}
	return nil
}

// dkmsEnv are the variables that dkms(8) gives to a dkms.conf.
func (b *build) dkmsEnv() []string {
	return []string{
		"kernelver=" + b.config.Release, "arch=" + machine[b.config.Arch], "kernel_source_dir=" + filepath.Join(b.Kit, buildDir),
		"dkms_tree=" + filepath.Join(b.tmp, "dkms"), "source_tree=" + filepath.Join(b.tmp, "source"),
		"module=" + b.conf.Name, "module_version=" + b.conf.Version,
	}
}

// command runs a program with an environment in which nothing of the user's is
// but the way to the programs, and keeps the end of what it prints.
func (b *build) command(ctx context.Context, dir string, env []string, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	// Paths of the machine would get into the module with assertions and, were
	// there any, debug information. Without -g compiling takes half the time.
	// genDWARFksyms computes CRCs from debug information.
	flags := "-ffile-prefix-map=" + b.src + "/= -ffile-prefix-map=" + b.Kit + "/="
	if !b.tools.dwarf {
		flags += " -g0"
	}
	c.Env = append([]string{
		"PATH=" + filepath.Join(b.tmp, "bin") + string(os.PathListSeparator) + os.Getenv("PATH"),
		"HOME=" + b.tmp, "TMPDIR=" + b.tmp, "PWD=" + dir, "LC_ALL=C", "TZ=UTC", "SOURCE_DATE_EPOCH=0",
		"KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=kiln", "KBUILD_BUILD_HOST=kiln", "KBUILD_BUILD_VERSION=1",
		"KBUILD_EXTRA_SYMBOLS=" + strings.Join(b.Job.Symvers, " "),
		"KCFLAGS=" + flags, "KAFLAGS=" + flags, "KILN_CC=" + b.tools.cc, "CROSS_COMPILE=" + b.tools.prefix,
		"MAKEFLAGS=" + b.makeFlags(),
	}, env...)
	killGroup(c)
	tail := &tail{also: b.Log}
	c.Stdout, c.Stderr = tail, tail
	err := c.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	b.output = tail.buf
	return err
}

// makeFlags are the flags of the first make and, as make passes them on, of
// those it starts. Modules' makefiles have these names for the directory of the
// kernel's headers; the kernel's own have none of them.
func (b *build) makeFlags() string {
	flags := "-j" + strconv.Itoa(cmp.Or(b.Jobs, runtime.NumCPU())) + " --"
	for _, name := range []string{"KDIR", "KERNELDIR", "KERNEL_DIR", "KERNEL_SRC", "KSRC"} {
		flags += " " + name + "=" + filepath.Join(b.Kit, buildDir)
	}
	return flags
}

// failure makes an error of the end of the last command's output.
func (b *build) failure(what string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	hint := ""
	for _, h := range []struct{ sign, text string }{
		{"libelf.so.1: cannot open shared object", "\nThe kit's objtool needs libelf: install Debian's package libelf1."},
		{"/lib/modules/", "\nIt may look for the kernel in /lib/modules instead of in the kit: take the directory from the variable KDIR in its makefile, or from kernel_source_dir in its dkms.conf."},
		{"/usr/src/linux", "\nIt may look for the kernel in /usr/src instead of in the kit: take the directory from the variable KDIR in its makefile, or from kernel_source_dir in its dkms.conf."},
	} {
		if bytes.Contains(b.output, []byte(h.sign)) {
			hint = h.text
			break
		}
	}
	text := strings.ReplaceAll(lastLines(string(b.output), 30), b.src+"/", "")
	return fmt.Errorf("%w for kernel %s: %s: %w\n%s%s", ErrBuild, b.config.Release, what, err, text, hint)
}

// scan keeps modpost's warnings, which tell of modules that will not load.
func (b *build) scan() {
	for line := range strings.Lines(string(b.output)) {
		if line, ok := strings.CutPrefix(strings.TrimSpace(line), "WARNING: modpost: "); ok && !slices.Contains(b.result.Warnings, line) {
			b.result.Warnings = append(b.result.Warnings, strings.ReplaceAll(line, b.src+"/", ""))
		}
	}
}

// made returns the modules to take, whose Path is in the source yet.
func (b *build) made() ([]Module, error) {
	var files []string
	err := filepath.WalkDir(b.src, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".ko") {
			rel, _ := filepath.Rel(b.src, path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var made []Module
	take := func(file, name, dest string) {
		made = append(made, Module{Name: name, Path: filepath.Join(b.src, file), Dest: dest})
		files = slices.DeleteFunc(files, func(f string) bool { return f == file })
	}
	if b.conf != nil {
		for _, m := range b.conf.Modules {
			file := filepath.Join(m.Location, m.Name+".ko")
			if slices.Contains(files, file) {
				take(file, m.DestName, cmp.Or(m.Dest, "extra"))
			} else if !m.Optional {
				return nil, b.failure("MAKE of dkms.conf", fmt.Errorf("dkms.conf promises %s, the build made %s", file, cmp.Or(strings.Join(files, ", "), "no module")))
			}
		}
		if len(b.conf.Unknown) == 0 {
			if len(files) > 0 {
				b.result.Warnings = append(b.result.Warnings, "not declared in dkms.conf and left out: "+strings.Join(files, ", "))
			}
			files = nil
		} else if len(files) > 0 {
			b.result.Warnings = append(b.result.Warnings, fmt.Sprintf("dkms.conf computes %s: all modules that were made are taken", strings.Join(b.conf.Unknown, ", ")))
		}
	}
	for _, file := range slices.Clone(files) {
		take(file, strings.TrimSuffix(filepath.Base(file), ".ko"), "extra")
	}
	if len(made) == 0 {
		return nil, fmt.Errorf("%w: make made no module; 'obj-m := NAME.o' in its Kbuild or Makefile is what makes one", ErrBuild)
	}
	names := map[string]string{}
	for _, m := range made {
		if other := names[m.Name]; other != "" {
			return nil, fmt.Errorf("%w: two modules are called %s: %s and %s", ErrBuild, m.Name, other, m.Path)
		}
		names[m.Name] = m.Path
	}
	return made, nil
}

// finish takes the debug information out of a module and puts it into Output.
// The symbol table stays: the kernel needs it. (BTF there is none: see unneeded.)
func (b *build) finish(ctx context.Context, m Module) error {
	made := m.Path
	m.Path = filepath.Join(b.Output, m.Name+".ko")
	stripped := filepath.Join(b.tmp, "stripped.ko")
	if err := b.command(ctx, b.tmp, nil, b.tools.strip, "--strip-debug", "-o", stripped, made); err != nil {
		return b.failure("strip", err)
	}
	data, err := os.ReadFile(stripped)
	if err != nil {
		return err
	}
	info, err := module.Parse(m.Path, data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBuild, err)
	}
	if info.Release() != b.config.Release || info.Arch() != b.config.Arch {
		return fmt.Errorf("%w: %s.ko came out for kernel %s on %s, want %s on %s: its makefile does not use the kit",
			ErrBuild, m.Name, info.Release(), info.Arch(), b.config.Release, b.config.Arch)
	}
	b.result.Version = cmp.Or(b.result.Version, info.Version)
	b.result.Modules = append(b.result.Modules, m)
	return os.WriteFile(m.Path, data, 0o644)
}

// symvers puts the lists of exported symbols together in Output.
func (b *build) symvers() error {
	var all []string
	err := filepath.WalkDir(b.src, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "Module.symvers" || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// The third field is the module with its path.
		for line := range strings.Lines(strings.ReplaceAll(string(data), "\t"+b.src+"/", "\t")) {
			all = append(all, strings.TrimSuffix(line, "\n")+"\n")
		}
		return nil
	})
	if err != nil || len(all) == 0 {
		return err
	}
	slices.Sort(all)
	b.result.Symvers = filepath.Join(b.Output, "Module.symvers")
	return os.WriteFile(b.result.Symvers, []byte(strings.Join(slices.Compact(all), "")), 0o644)
}
