package modules

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/kernel/modalias"
)

// Config is what an administrator says about modules in modprobe.d(5) files and
// on the kernel command line.
type Config struct {
	options   map[string][]string
	blacklist map[string]bool
}

// ReadConfig reads the *.conf files in the modprobe.d directories of root:
// etc, run and usr/lib, where a file hides those of the same name in a later
// directory. It knows "options NAME PARAMETER…" and "blacklist NAME"; other
// commands, which would run programs or rename modules, are ignored.
func ReadConfig(root fs.FS) (*Config, error) {
	c := &Config{}
	files := map[string]string{}
	for _, dir := range []string{"etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d"} {
		found, err := fs.Glob(root, dir+"/*.conf")
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if _, hidden := files[path.Base(f)]; !hidden {
				files[path.Base(f)] = f
			}
		}
	}
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		data, err := readFile(root, files[n])
		if err != nil {
			return nil, err
		}
		c.parse(data)
	}
	return c, nil
}

func (c *Config) parse(data string) {
	lines(strings.ReplaceAll(data, "\\\n", " "), func(_ int, line string) {
		fields := strings.Fields(line)
		switch {
		case fields[0] == "options" && len(fields) > 2:
			c.AddOptions(fields[1], strings.Join(fields[2:], " "))
		case fields[0] == "blacklist" && len(fields) > 1:
			c.Blacklist(fields[1])
		}
	})
}

// AddOptions adds parameters for the named module; the kernel lets the last of
// equal parameters win.
func (c *Config) AddOptions(name, parameters string) {
	if c.options == nil {
		c.options = map[string][]string{}
	}
	if parameters = strings.TrimSpace(parameters); parameters != "" {
		c.options[modalias.Fold(name)] = append(c.options[modalias.Fold(name)], parameters)
	}
}

// Blacklist makes the named module be ignored when an alias matches it; it can
// still be loaded by its name.
func (c *Config) Blacklist(name string) {
	if c.blacklist == nil {
		c.blacklist = map[string]bool{}
	}
	c.blacklist[modalias.Fold(name)] = true
}

// AddCommandLine takes the parameters of modules from a kernel command line,
// split into its words: NAME.PARAMETER[=VALUE] and modprobe.blacklist=NAME,….
func (c *Config) AddCommandLine(words []string) {
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		name, parameter, ok := strings.Cut(key, ".")
		if !ok || name == "" || parameter == "" {
			continue
		}
		if name == "modprobe" {
			if parameter == "blacklist" {
				for _, n := range strings.Split(value, ",") {
					c.Blacklist(n)
				}
			}
			continue
		}
		c.AddOptions(name, w[len(name)+1:])
	}
}

func (c *Config) parameters(name string) string {
	if c == nil {
		return ""
	}
	return strings.Join(c.options[name], " ")
}

func (c *Config) blacklisted(name string) bool { return c != nil && c.blacklist[name] }
