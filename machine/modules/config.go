package modules

import (
	"fmt"
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
	given     map[string]string   // by Loader.Give
	line      map[string][]string // of the kernel command line
	blacklist map[string]string   // where it was said
	aliases   []alias
	soft      map[string]softdep
	notes     []string
}

// ReadConfig reads the *.conf files in the modprobe.d directories of root:
// etc, run and usr/lib, where a file hides those of the same name in a later
// directory. It takes "options NAME PARAMETER…", "blacklist NAME", "alias
// PATTERN NAME" and "softdep NAME pre: NAME… post: NAME…". The commands install
// and remove, which run programs, are not obeyed; Notes tells about them.
func ReadConfig(root fs.FS) (*Config, error) {
	c := &Config{}
	files, err := dropIns(root, "modprobe.d")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := readFile(root, f)
		if err != nil {
			return nil, err
		}
		c.parse(f, data)
	}
	return c, nil
}

// dropIns returns the *.conf files in the directories of that name, sorted by
// their own names.
func dropIns(root fs.FS, dir string) ([]string, error) {
	files := map[string]string{}
	for _, parent := range []string{"etc", "run", "usr/lib"} {
		found, err := fs.Glob(root, parent+"/"+dir+"/*.conf")
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if _, hidden := files[path.Base(f)]; !hidden {
				files[path.Base(f)] = f
			}
		}
	}
	var list []string
	for _, f := range files {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	return list, nil
}

// parse reads a file. Parameters are kept as they are: the kernel takes white
// space between double quotes as part of a value.
func (c *Config) parse(file, data string) {
	lines(strings.ReplaceAll(data, "\\\n", " "), func(_ int, line string) {
		command, rest := cutField(line)
		name, rest := cutField(rest)
		switch {
		case name == "":
			c.note("%s: %q says nothing about which module", file, command)
		case command == "options":
			c.AddOptions(name, rest)
		case command == "blacklist":
			c.blacklisting(name, "blacklisted in /"+file)
		case command == "alias" && rest != "":
			module, _ := cutField(rest)
			c.aliases = append(c.aliases, alias{modalias.Fold(name), modalias.Fold(module)})
		case command == "softdep":
			if c.soft == nil {
				c.soft = map[string]softdep{}
			}
			addSoftdep(c.soft, name, strings.Fields(rest))
		case command == "weakdep": // for those who make an initramfs
		case command == "install" || command == "remove":
			c.note("%s: %q for %s is ignored: it would run a program", file, command, name)
		default:
			c.note("%s: found %q, want options, blacklist, alias or softdep", file, command)
		}
	})
}

func (c *Config) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// Notes are about lines that have no effect.
func (c *Config) Notes() []string { return c.notes }

// cutField returns the first word of s and what follows it.
func cutField(s string) (field, rest string) {
	s = strings.TrimSpace(s)
	if i := strings.IndexAny(s, " \t\r\v\f"); i >= 0 {
		return s[:i], strings.TrimSpace(s[i:])
	}
	return s, ""
}

// AddOptions adds parameters for the named module; the kernel lets the last of
// equal parameters win.
func (c *Config) AddOptions(name, parameters string) {
	add(&c.options, name, parameters)
}

func add(to *map[string][]string, name, parameters string) {
	if *to == nil {
		*to = map[string][]string{}
	}
	if parameters = strings.TrimSpace(parameters); parameters != "" {
		(*to)[modalias.Fold(name)] = append((*to)[modalias.Fold(name)], parameters)
	}
}

// blacklisting makes the named module be ignored when an alias matches it; it
// can still be loaded by its name.
func (c *Config) blacklisting(name, why string) {
	if c.blacklist == nil {
		c.blacklist = map[string]string{}
	}
	c.blacklist[modalias.Fold(name)] = why
}

// AddCommandLine takes the parameters of modules from a kernel command line,
// split into its words without their quotes: NAME.PARAMETER[=VALUE] and
// modprobe.blacklist=NAME,…. Those of module_blacklist= are as blacklisted
// here; what is more, the kernel refuses to load them. They come after all others.
func (c *Config) AddCommandLine(words []string) {
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		name, parameter, ok := strings.Cut(key, ".")
		switch {
		case key == "modprobe.blacklist" || key == "module_blacklist":
			for n := range strings.SplitSeq(value, ",") {
				c.blacklisting(n, "blacklisted by "+key+"= on the kernel command line")
			}
		case ok && name != "" && parameter != "" && name != "modprobe":
			add(&c.line, name, Quote(w[len(name)+1:]))
		}
	}
}

// Quote puts double quotes around the value of PARAMETER=VALUE if there is
// white space in it, as the kernel wants it in a list of parameters. One that
// has quotes already is left alone.
func Quote(parameter string) string {
	key, value, ok := strings.Cut(parameter, "=")
	if !strings.ContainsAny(parameter, " \t\n\v\f\r") || strings.Contains(parameter, `"`) {
		return parameter
	}
	if !ok {
		return `"` + parameter + `"`
	}
	return key + `="` + value + `"`
}

// Parameters returns those of the named module, as the kernel takes them.
func (c *Config) Parameters(name string) string {
	if c == nil {
		return ""
	}
	name = modalias.Fold(name)
	all := slices.Clone(c.options[name])
	if given := c.given[name]; given != "" {
		all = append(all, given)
	}
	return strings.Join(append(all, c.line[name]...), " ")
}

// blacklisted returns where the module is blacklisted, or "".
func (c *Config) blacklisted(name string) string {
	if c == nil {
		return ""
	}
	return c.blacklist[name]
}

// aliased returns the modules that the configuration's own aliases name. They
// take the place of everything else of that name.
func (c *Config) aliased(name string) []string {
	if c == nil {
		return nil
	}
	name = modalias.Fold(name)
	var names []string
	for _, a := range c.aliases {
		if modalias.Match(a.pattern, name) {
			names = append(names, a.module)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// ReadLoad returns the modules that the *.conf files in the modules-load.d
// directories of root ask for: one name per line, as modules-load.d(5) has it.
// Files hide each other as with ReadConfig.
func ReadLoad(root fs.FS) ([]Asked, error) {
	files, err := dropIns(root, "modules-load.d")
	if err != nil {
		return nil, err
	}
	var asked []Asked
	for _, f := range files {
		data, err := readFile(root, f)
		if err != nil {
			return nil, err
		}
		lines(data, func(_ int, line string) {
			if line[0] != ';' {
				asked = append(asked, Asked{Name: line, File: f})
			}
		})
	}
	return asked, nil
}

// Asked is a module that a file asks for.
type Asked struct {
	Name string
	File string // without the leading slash
}
