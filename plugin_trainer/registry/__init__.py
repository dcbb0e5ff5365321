"""From what a user typed to the thing it names, in four steps, none taken before it is needed.

discovery    entry-point metadata -> InstalledPlugin          imports nothing
resolution   what was typed -> PluginSource                   imports nothing
loading      PluginSource -> LoadedPlugin                     imports one torch-free module
catalog      plugin/name -> Offer                             imports nothing
building     Offer + settings -> model, data, callback, ...   imports the target
"""
