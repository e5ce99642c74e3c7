# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_leakscope_global_optspecs
    string join \n h/help V/version
end

function __fish_leakscope_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_leakscope_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_leakscope_using_subcommand
    set -l cmd (__fish_leakscope_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c leakscope -n "__fish_leakscope_needs_command" -s h -l help -d 'Print help'
complete -c leakscope -n "__fish_leakscope_needs_command" -s V -l version -d 'Print version'
complete -c leakscope -n "__fish_leakscope_needs_command" -f -a "run" -d 'Run a command with every allocation traced; report what was never freed'
complete -c leakscope -n "__fish_leakscope_needs_command" -f -a "report" -d 'Show a heap file, live or from a process that has ended'
complete -c leakscope -n "__fish_leakscope_needs_command" -f -a "leaks" -d 'Find the blocks that nothing points to any more, in a running process, a core file or a command'
complete -c leakscope -n "__fish_leakscope_needs_command" -f -a "demo" -d 'A first tour: a small HTTP service that leaks in three ways, and the report that finds them'
complete -c leakscope -n "__fish_leakscope_using_subcommand run" -s o -l output -d 'Write the heap file here (it must not exist); a child\'s goes to FILE.<pid> [default: a new directory under $XDG_STATE_HOME/leakscope, or /var/lib/leakscope for root]' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand run" -l sample -d 'Record a sample of the allocations instead of all: one per so many bytes on average [without BYTES: 512K]' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand run" -l json -d 'Also write the report as JSON (schema leakscope.report/1) to this file' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand run" -l top -d 'Call sites to show' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand run" -l max-children -d 'Heap files of child processes to keep; those with nothing unfreed go first' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l format -d 'What to write' -r -f -a "text\t'For people: totals, and the largest call sites'
json\t'Everything, schema leakscope.report/1'
pprof\t'Gzipped profile.proto, for pprof and the tools that read it'
folded\t'One line per stack with its number, for flame graph tools'
flamegraph\t'One SVG file for a browser, to zoom and search; it loads nothing'"
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l view -d 'The number that call sites are sorted by and drawn with' -r -f -a "inuse\t'Bytes that were not freed: the leaks'
peak\t'Bytes in use when the process had most in use'
allocated\t'Bytes allocated over the whole life, freed or not'
temporary\t'Blocks that were freed by their thread before it allocated anything else'"
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l json -d 'JSON (schema leakscope.report/1), to standard output or to FILE' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -s o -l output -d 'Write to this file instead of standard output' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l top -d 'Call sites to show in text' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l pid -d 'The process to show, in a heap file that is still being written and holds several' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l exe -d 'An unstripped copy of the executable, for names on another machine' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -l debug-dir -d 'A directory with debug information (searched by build id and by debug link); may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c leakscope -n "__fish_leakscope_using_subcommand report" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l show-leak-kinds -d 'Kinds whose records are shown: definite, indirect, possible, reachable (separated by commas), all or none' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l errors-for-leak-kinds -d 'Kinds that make the exit status 1' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l leak-check-heuristics -d 'Pointers into the middle of a block that count as to its start: stdstring, length64, newarray, multipleinheritance, all or none' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l pointer-mask -d 'Bits of a word that are a pointer, for programs that keep tags in the others, such as 0x0000fffffffffff8' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l suppressions -d 'Suppress what this file names, in memcheck\'s or LeakSanitizer\'s format; may be repeated' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l every -d 'Scan again every TIME (500ms, 60s, 5m, 1h), and say what was lost in between and what held it last' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l count -d 'With --every: end after N scans' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l top -d 'Records to show, the largest ones' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l staleness -d 'With --retained: how much of that memory nobody touches in TIME, by the kernel\'s marks on pages' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l json -d 'JSON (schema leakscope.leaks/1), to standard output or to FILE; with a COMMAND, FILE must be named' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l max-pause -d 'Refuse if the process would stand still for longer than this many milliseconds, by prediction' -r
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -s o -l output -d 'With a COMMAND: its heap file, as leakscope run -o FILE' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l exe -d 'The executable of a core file; else an unstripped copy of it, for names' -r -F
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l debug-dir -d 'A directory with debug information (searched by build id and by debug link); may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l no-default-suppressions -d 'Do not use the built-in suppressions of what the C, C++ and Rust runtimes keep on purpose'
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l gen-suppressions -d 'After each record, print a suppression for it'
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l retained -d 'Also say which reachable memory keeps growing, and who holds it'
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l contents -d 'Also show the first bytes of a block of each record'
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -l no-fork -d 'Let the process stand still while it is read, instead of copying its memory'
complete -c leakscope -n "__fish_leakscope_using_subcommand leaks" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c leakscope -n "__fish_leakscope_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
