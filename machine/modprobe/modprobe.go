//go:build linux

// Package modprobe is the program of that name, as far as the kernel and the
// programs on a node call it: modprobe(8) of kmod.
package modprobe

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/modules"
)

// A command is a parsed command line.
type command struct {
	quiet bool
	show  bool // print the names of what would be loaded
	black bool // apply the blacklist to names as well
	names []string
	param string
}

func parse(args []string) (command, error) {
	var c command
	all, options := false, true
	for _, a := range args {
		if !options || !strings.HasPrefix(a, "-") || a == "-" {
			c.names = append(c.names, a)
			continue
		}
		switch a {
		case "--":
			options = false
		case "--all":
			all = true
		case "--quiet":
			c.quiet = true
		case "--dry-run", "--show":
			c.show = true
		case "--use-blacklist":
			c.black = true
		case "--verbose", "--syslog":
		default:
			if strings.HasPrefix(a, "--") {
				return c, fmt.Errorf("unknown option %s", a)
			}
			for _, o := range a[1:] {
				switch o {
				case 'a':
					all = true
				case 'q':
					c.quiet = true
				case 'n':
					c.show = true
				case 'b':
					c.black = true
				case 'v', 's':
				default:
					return c, fmt.Errorf("unknown option -%c", o)
				}
			}
		}
	}
	if len(c.names) == 0 {
		return c, fmt.Errorf("want the name or alias of a module")
	}
	if !all {
		// Only the first is a name, then come its parameters.
		var param []string
		for _, p := range c.names[1:] {
			param = append(param, modules.Quote(p))
		}
		c.param = strings.Join(param, " ")
		c.names = c.names[:1]
	}
	return c, nil
}

// Main runs modprobe with its arguments and returns the exit status: 0 or 1.
func Main(args []string, stdout, stderr io.Writer) int {
	c, err := parse(args)
	if err == nil {
		err = run(c, stdout)
	}
	if err != nil {
		if !c.quiet {
			fmt.Fprintf(stderr, "modprobe: %v\n", err)
		}
		return 1
	}
	return 0
}

func run(c command, stdout io.Writer) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	config, err := modules.ReadConfig(os.DirFS("/"))
	if err != nil {
		return err
	}
	if line, err := os.ReadFile("/proc/cmdline"); err == nil {
		config.AddCommandLine(cmdline.Parse(string(line)))
	}
	loader, err := modules.Open(modules.Directory("/", unix.ByteSliceToString(u.Release[:])), config)
	if err != nil {
		return err
	}
	loader.ApplyBlacklist = c.black
	defer func() { tell(leaveWord(Dir, loader.Reports())) }()
	for _, name := range c.names {
		if c.show {
			closure, err := loader.Index().Closure(name)
			if err != nil {
				return err
			}
			for _, n := range closure {
				fmt.Fprintln(stdout, n)
			}
			continue
		}
		if err := loader.Load(name, c.param); err != nil {
			return err
		}
	}
	return nil
}
