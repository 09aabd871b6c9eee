package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/internal/progress"
)

// globals are the flags of every command.
type globals struct {
	progress string
}

func newRoot() *cobra.Command {
	var g globals
	root := &cobra.Command{
		Use:   "kiln",
		Short: "Build bootable images and add kernel modules to them as system extensions",
		Long: `kiln composes bootable images of a minimal, immutable operating system for
containers: a base that is built once, system extensions that add kernel
modules and files to it, and a profile that says what comes out.

Results go to standard output, progress to standard error.`,
		Example: `  kiln base build --kernel linux-image.deb --output base
  kiln build metal --base base --output metal.raw
  kiln inspect metal.raw
  kiln run metal.raw`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVar(&g.progress, "progress", "auto", "how to show progress on standard error: auto, bars, plain, json or none")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	root.AddCommand(newBase(&g), newBuild(&g), newInstall(&g), newImage(&g), newUpgrade(&g), newRollback(&g), newSlots(), newDisks(&g), newMeta(&g), newNode(), newProfile(), newConfig(), newExtension(&g), newKernel(&g), newKey(&g), newInspect(), newVerify(), newDiff(), newConvert(&g), newRun(), newVersion(), newExitCodes())
	return root
}

// execute runs the command that the arguments name. What fails before the
// command itself runs is a usage error.
func execute(ctx context.Context) error {
	started := false
	root := newRoot()
	mark(root, &started)
	err := root.ExecuteContext(ctx)
	if err != nil && !started {
		return usageError{err}
	}
	return err
}

// mark makes c and the commands below it set started when they run.
func mark(c *cobra.Command, started *bool) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			*started = true
			return run(c, args)
		}
	}
	for _, sub := range c.Commands() {
		mark(sub, started)
	}
}

func newExitCodes() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: "The exit codes of kiln:\n\n" + exitCodesHelp}
}

// reporter returns the reporter that the flags ask for. Bars are for terminals
// that understand them.
func (g *globals) reporter() (*progress.Reporter, error) {
	mode := progress.Mode(g.progress)
	switch mode {
	case "auto":
		mode = progress.Plain
		_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
		if err == nil && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == "" {
			mode = progress.Bars
		}
	case progress.Bars, progress.Plain, progress.JSON, progress.None:
	default:
		return nil, usageError{fmt.Errorf("--progress %q, want auto or one of %v", g.progress, progress.Modes())}
	}
	return progress.New(os.Stderr, mode), nil
}

// args checks the number of arguments.
func args(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, got []string) error {
		if len(got) != n {
			return usageError{fmt.Errorf("%s takes %s, got %d arguments; see '%s --help'", c.CommandPath(), what, len(got), c.CommandPath())}
		}
		return nil
	}
}

// epoch returns the time of everything that is made: SOURCE_DATE_EPOCH, in
// seconds since 1970, or the fallback. This is the only place that reads it.
func epoch(fallback int64) (int64, error) {
	s, ok := os.LookupEnv("SOURCE_DATE_EPOCH")
	if !ok || s == "" {
		return fallback, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<32-1 {
		return 0, usageError{fmt.Errorf("SOURCE_DATE_EPOCH=%q, want seconds since 1970", s)}
	}
	return n, nil
}

// cacheDir returns the directory of the cache; without a home directory it is
// a temporary one, which done removes.
func cacheDir(flag string) (dir cache.Dir, done func(), err error) {
	if flag != "" {
		return cache.Dir(flag), func() {}, nil
	}
	if user, err := os.UserCacheDir(); err == nil {
		return cache.Dir(filepath.Join(user, "kiln")), func() {}, nil
	}
	tmp, err := os.MkdirTemp("", "kiln-cache-")
	if err != nil {
		return "", nil, err
	}
	return cache.Dir(tmp), func() { os.RemoveAll(tmp) }, nil
}
